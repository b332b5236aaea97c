"""Projected: few numbers spread over all entries of a matrix by a random projection that a seed draws again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from typing_extensions import override

from modicum.forms.composite import Composite
from modicum.forms.form import Form, expect

KINDS = ("fastfood", "dense")
# Entries of a projection up to which a file's word is taken.
_LARGEST = 1 << 27


class Projected(Composite):
    """``scale · P @ parts[0]`` in the matrix's shape, with parts[0] (1, size) and P (entries, size) of the seed and the kind, scale (1,)."""

    kind = "projected"

    def __init__(self, numbers: Form, scale: torch.Tensor, seed: int, projection: str, shape: tuple[int, int]):
        self.parts, self.scale, self.seed, self.projection, self.shape = (numbers,), scale, seed, projection, shape
        self.dtype = numbers.dtype

    @override
    def made_of(self, parts: Sequence[Form]) -> Form:
        return Projected(parts[0], self.scale, self.seed, self.projection, self.shape)

    @override
    def own(self) -> dict[str, torch.Tensor]:
        return {"scale": self.scale}

    @override
    def said(self) -> dict[str, Any]:
        return {"seed": self.seed, "projection": self.projection}

    @override
    def value(self) -> torch.Tensor:
        numbers = self.parts[0].value().reshape(-1)
        drawn = drawing(self.seed, self.projection, self.shape[0] * self.shape[1], len(numbers))
        return projected(numbers, self.scale, drawn, self.shape)

    @override
    @classmethod
    def joined(
        cls, parts: tuple[Form, ...], own: Mapping[str, torch.Tensor], said: Mapping[str, Any], shape: tuple[int, int], dtype: torch.dtype
    ) -> Form:
        (numbers,), seed, projection = parts, int(said["seed"]), said["projection"]
        entries = shape[0] * shape[1] * (numbers.shape[1] if projection == "dense" else 1)
        if numbers.shape[0] != 1 or own.keys() != {"scale"} or projection not in KINDS or not 0 <= seed < 2**63 or entries > _LARGEST:
            raise ValueError("one row of numbers belongs in a projection of a known kind under a seed below 2**63")
        return cls(numbers, expect(own["scale"], (1,)), seed, projection, shape)


def drawing(seed: int, projection: str, entries: int, size: int) -> dict[str, torch.Tensor]:
    """What a projection of ``size`` numbers to ``entries`` is made of, by the raw words of a counter.

    ``dense``: ``matrix`` (entries, size), uniform with the variance 1 / size. ``fastfood``: ``signs``, ``order`` and ``lengths``, all (width,) with
    the power of two that holds entries and size.
    """
    source = np.random.Philox(key=seed)
    if projection == "dense":
        return {"matrix": _uniform(source, entries * size).reshape(entries, size) / size**0.5}
    width = 1 << (max(entries, size, 2) - 1).bit_length()
    signs = torch.from_numpy((source.random_raw(width) >> np.uint64(63)).astype(np.float32)) * 2 - 1
    order = torch.from_numpy(np.argsort(source.random_raw(width), kind="stable"))
    return {"signs": signs, "order": order, "lengths": _uniform(source, width)}


def projected(numbers: torch.Tensor, scale: torch.Tensor, drawn: Mapping[str, torch.Tensor], shape: tuple[int, int]) -> torch.Tensor:
    """``scale · P @ numbers`` in a shape, for numbers (size,); entries have about the numbers' variance. Differentiable in both."""
    if "matrix" in drawn:
        spread = (drawn["matrix"] * numbers).sum(1)
    else:
        wide = torch.cat([numbers, numbers.new_zeros(len(drawn["signs"]) - len(numbers))])
        mixed = walsh(wide * drawn["signs"])[drawn["order"]]
        spread = walsh(mixed * drawn["lengths"])[: shape[0] * shape[1]] / (len(wide) * len(numbers)) ** 0.5
    return (scale * spread).reshape(shape)


def walsh(numbers: torch.Tensor) -> torch.Tensor:
    """The Walsh-Hadamard transform of (width,), width a power of two, not normalized."""
    found, half = numbers, 1
    while half < len(numbers):
        pairs = found.reshape(-1, 2, half)
        found = torch.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], 1)
        half *= 2
    return found.reshape(-1)


def _uniform(source: np.random.Philox, count: int) -> torch.Tensor:
    """Numbers of mean zero and variance one."""
    words = torch.from_numpy((source.random_raw(count) >> np.uint64(40)).astype(np.float32))
    return (words * 2.0**-23 + 2.0**-24 - 1) * 3**0.5
