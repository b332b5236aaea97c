"""Rotated: a form whose columns are multiplied, block by block, by small square matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from typing_extensions import override

from modicum.forms.composite import Composite
from modicum.forms.form import Form


class Rotated(Composite):
    """Block ``b`` of the columns of ``inner`` times ``blocks[b]``: blocks (count, size, size), or one of them for all."""

    kind = "rotated"

    def __init__(self, inner: Form, blocks: torch.Tensor):
        self.parts, self.blocks, self.shape, self.dtype = (inner,), blocks, inner.shape, inner.dtype

    @override
    def made_of(self, parts: Sequence[Form]) -> Form:
        return Rotated(parts[0], self.blocks)

    @override
    def own(self) -> dict[str, torch.Tensor]:
        return {"blocks": self.blocks}

    @override
    def value(self) -> torch.Tensor:
        cut = self.parts[0].value().reshape(self.shape[0], -1, self.blocks.shape[1])
        blocks = self.blocks.float().expand(cut.shape[1], -1, -1)
        return torch.einsum("rbi,bij->rbj", cut, blocks).reshape(self.shape)

    @override
    @classmethod
    def joined(
        cls, parts: tuple[Form, ...], own: Mapping[str, torch.Tensor], said: Mapping[str, Any], shape: tuple[int, int], dtype: torch.dtype
    ) -> Form:
        (inner,) = parts
        count, size, other = own["blocks"].shape
        if inner.shape != shape or len(own) != 1 or size != other or size < 1 or shape[1] % size or count not in (1, shape[1] // size):
            raise ValueError(f"a form of {shape} belongs beside square blocks that cover its columns")
        return cls(inner, own["blocks"])
