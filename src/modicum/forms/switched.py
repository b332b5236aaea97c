"""Switched: a form some of whose entries are off, told by one bit each."""

from __future__ import annotations

import torch
from typing_extensions import override

from modicum.forms.composite import Turned
from modicum.forms.packing import pack, unpack


class Switched(Turned):
    """``inner`` where ``mask`` (rows, columns) is true, zero elsewhere; a file holds one bit per entry."""

    kind = "switched"
    called = "mask"

    @override
    def own(self) -> dict[str, torch.Tensor]:
        return {self.called: pack(self.tensor.to(torch.uint8), 1)}

    @override
    def value(self) -> torch.Tensor:
        return self.parts[0].value().masked_fill(~self.tensor, 0.0)

    @override
    @classmethod
    def fitting(cls, stored: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
        mask = unpack(stored, 1, shape[1]).bool()
        if tuple(mask.shape) != shape:
            raise ValueError(f"a form of {shape} belongs under its mask")
        return mask
