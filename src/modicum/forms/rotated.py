"""Rotated: a form whose columns are multiplied, block by block, by small square matrices."""

from __future__ import annotations

import torch
from typing_extensions import override

from modicum.forms.composite import Turned


class Rotated(Turned):
    """Block ``b`` of the columns of ``inner`` times ``blocks[b]``: blocks (count, size, size), or one of them for all."""

    kind = "rotated"
    called = "blocks"

    @override
    def value(self) -> torch.Tensor:
        cut = self.parts[0].value().reshape(self.shape[0], -1, self.tensor.shape[1])
        blocks = self.tensor.float().expand(cut.shape[1], -1, -1)
        return torch.einsum("rbi,bij->rbj", cut, blocks).reshape(self.shape)

    @override
    @classmethod
    def fitting(cls, stored: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
        count, size, other = stored.shape
        if size != other or size < 1 or shape[1] % size or count not in (1, shape[1] // size):
            raise ValueError(f"a form of {shape} belongs beside square blocks that cover its columns")
        return stored
