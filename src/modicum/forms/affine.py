"""Affine: a form whose square blocks are multiplied by small matrices that are also added to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from typing_extensions import override

from modicum.forms.composite import Composite
from modicum.forms.form import Form, expect


def affine(value: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    """``W_ij + (W_ij B_i + B_i)`` of square blocks of ``value`` (rows, columns); ``blocks`` (rows / size, size, size)."""
    count, size, _ = blocks.shape
    cut = value.reshape(count, size, -1, size).transpose(1, 2)
    changed = cut @ blocks.float()[:, None] + blocks.float()[:, None]
    return value + changed.transpose(1, 2).reshape(value.shape)


class Affine(Composite):
    """Square block ``(i, j)`` of ``inner`` plus itself times ``blocks[i]`` plus that; ``blocks`` (rows / size, size, size)."""

    kind = "affine"

    def __init__(self, inner: Form, blocks: torch.Tensor):
        self.parts, self.blocks, self.shape, self.dtype = (inner,), blocks, inner.shape, inner.dtype

    @override
    def made_of(self, parts: Sequence[Form]) -> Form:
        return Affine(parts[0], self.blocks)

    @override
    def own(self) -> dict[str, torch.Tensor]:
        return {"blocks": self.blocks}

    @override
    def value(self) -> torch.Tensor:
        return affine(self.parts[0].value(), self.blocks)

    @override
    @classmethod
    def joined(
        cls, parts: tuple[Form, ...], own: Mapping[str, torch.Tensor], said: Mapping[str, Any], shape: tuple[int, int], dtype: torch.dtype
    ) -> Form:
        (inner,), blocks = parts, own["blocks"]
        size = blocks.shape[-1]
        if inner.shape != shape or len(own) != 1 or size < 1 or shape[0] % size or shape[1] % size:
            raise ValueError(f"a form of {shape} belongs beside square blocks that divide it")
        return cls(inner, expect(blocks, (shape[0] // size, size, size)))
