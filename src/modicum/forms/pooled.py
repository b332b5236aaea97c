"""Pooled: a weight whose entries are those of a pool that is smaller, taken in an order that a seed draws."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from typing_extensions import override

from modicum.forms.composite import Composite
from modicum.forms.form import Form, expect

# Entries up to which a file's word is taken.
_LARGEST = 1 << 28
# Rounds through a pool that one weight may take.
ROUNDS = 1 << 16
# Turns through a part of the pool up to which a weight is put together of slices.
_TURNS = 64


class Pooled(Composite):
    """``scale`` (1,) times entries of ``pool`` (1, numbers): those of the weight's places ``at``, ``at + 1``, ... of all, row by row.

    The part of the pool from ``first`` on, ``length`` numbers in runs of ``chunk``, is gone through again and again: as it lies in the first round,
    and with a ``seed`` in an order and with signs of its own in each that follows. So every number is used as often as every other, give or take
    one, and a pool as large as all weights is those weights.
    """

    kind = "pooled"

    def __init__(
        self, pool: Form, shape: tuple[int, int], scale: torch.Tensor, *, at: int, first: int, length: int, chunk: int = 1,
        seed: int | None = None,
    ):  # fmt: skip
        self.parts, self.shape, self.dtype = (pool,), shape, pool.dtype
        self.at, self.first, self.length, self.chunk, self.seed, self.scale = at, first, length, chunk, seed, scale
        fits = (
            chunk >= 1 and length >= chunk and length % chunk == 0 and first >= 0 and first + length <= pool.shape[1] and pool.shape[0] == 1
        )
        if not (
            fits
            and 0 <= at < 1 << 60
            and (seed is None or 0 <= seed < 2**63)
            and tuple(scale.shape) == (1,)
            and math.prod(shape) <= min(_LARGEST, ROUNDS * length)
        ):
            raise ValueError("a pool of one row, a part of it in whole runs, and a seed below 2**63 belong in a pooled weight")

    @override
    def made_of(self, parts: Sequence[Form]) -> Form:
        return Pooled(parts[0], self.shape, self.scale, **self.said())

    @override
    def own(self) -> dict[str, torch.Tensor]:
        return {"scale": self.scale}

    @override
    def value(self) -> torch.Tensor:
        return entries(self.parts[0].value().reshape(-1), math.prod(self.shape), self.scale.float(), **self.said()).reshape(self.shape)

    @override
    def said(self) -> dict[str, Any]:
        return {"at": self.at, "first": self.first, "length": self.length, "chunk": self.chunk, "seed": self.seed}

    @override
    @classmethod
    def joined(
        cls, parts: tuple[Form, ...], own: Mapping[str, torch.Tensor], said: Mapping[str, Any], shape: tuple[int, int], dtype: torch.dtype
    ) -> Form:
        (pool,) = parts
        seed = None if said["seed"] is None else int(said["seed"])
        whole = {name: int(said[name]) for name in ("at", "first", "length", "chunk")}
        return cls(pool, shape, expect(own["scale"], (1,), torch.float32), **whole, seed=seed)


def entries(
    pool: torch.Tensor, count: int, scale: torch.Tensor, *, at: int, first: int, length: int, chunk: int, seed: int | None
) -> torch.Tensor:  # fmt: skip
    """What a weight of ``count`` entries has of a pool (numbers,), times ``scale``: float32, differentiable. See ``Pooled``."""
    if seed is None and count <= _TURNS * length:
        part, begin, runs = pool[first : first + length], at % length, list[torch.Tensor]()
        while count:
            runs.append(part[begin : begin + count])
            count, begin = count - len(runs[-1]), 0
        return (runs[0] if len(runs) == 1 else torch.cat(runs)) * scale
    places, signs = drawn(count, at=at, first=first, length=length, chunk=chunk, seed=seed)
    found = pool.index_select(0, places)
    return (found if signs is None else found * signs) * scale


@lru_cache(maxsize=4096)  # an update asks for those of every weight
def drawn(count: int, *, at: int, first: int, length: int, chunk: int, seed: int | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Places in a pool (count,), and their signs (count,), None where all are plus; see ``Pooled``."""
    runs, inside = np.divmod(np.arange(at, at + count, dtype=np.int64), chunk)
    rounds, turn = np.divmod(runs, length // chunk)
    if seed is None or not count or int(rounds[-1]) == 0:
        return torch.from_numpy(first + turn * chunk + inside), None
    places, signs = np.empty(count, np.int64), np.ones(count, np.float32)
    numbers = np.arange(rounds[0], rounds[-1] + 2)
    for number, (begin, end) in zip(numbers.tolist(), itertools.pairwise(np.searchsorted(rounds, numbers).tolist())):
        here = slice(begin, end)
        order, sign = _round(seed, number, length // chunk)
        places[here], signs[here] = order[turn[here]], sign[turn[here]]
    return torch.from_numpy(first + places * chunk + inside), torch.from_numpy(signs)


def _round(seed: int, number: int, runs: int) -> tuple[np.ndarray, np.ndarray]:
    """The order of a pool's runs in one round, and the sign of each, from the raw words of a counter; the first round has them as they lie."""
    if not number:
        return np.arange(runs), np.ones(runs, np.float32)
    words = np.random.Philox(key=[seed, number]).random_raw(2 * runs)
    return words[:runs].argsort(kind="stable"), np.where(words[runs:] >> np.uint64(63), np.float32(-1), np.float32(1))
