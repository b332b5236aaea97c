"""Masked: the entries that remain, and one bit per entry that says which they are."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from typing_extensions import override

from modicum.forms.form import Form, expect
from modicum.forms.packing import pack, packed_bytes, packed_outline, unpack


class Masked(Form):
    """Nonzero values in row order plus a bitmask; unstructured and n:m alike. Saves file bytes in our container, no time anywhere."""

    kind = "masked"

    def __init__(self, kept: torch.Tensor, mask: torch.Tensor):
        self.kept, self.mask, self.shape, self.dtype = kept, mask, (mask.shape[0], mask.shape[1]), kept.dtype

    @classmethod
    def of(cls, weight: torch.Tensor, mask: torch.Tensor) -> Masked:
        """The entries of ``weight`` (rows, columns) where ``mask`` is true."""
        return cls(weight[mask], mask)

    @override
    def dense(self) -> torch.Tensor:
        value = torch.zeros(self.shape, dtype=self.dtype, device=self.kept.device)
        value[self.mask] = self.kept
        return value

    @override
    def zeroed(self, where: torch.Tensor) -> Form:
        return Masked(self.kept.masked_fill(where[self.mask], 0), self.mask)

    @override
    def movable(self) -> dict[str, torch.Tensor]:
        return {"values": self.kept}

    @override
    def having(self, numbers: Mapping[str, torch.Tensor]) -> Form:
        return Masked(numbers["values"], self.mask)

    @override
    def tensors(self) -> dict[str, torch.Tensor]:
        return {"values": self.kept.contiguous(), "mask": pack(self.mask.to(torch.uint8), 1)}

    @override
    @property
    def nbytes(self) -> int:
        return self.kept.nbytes + packed_bytes(self.mask.shape, 1)

    @override
    @cached_property
    def outline(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        return {"values": (self.kept.dtype, tuple(self.kept.shape)), "mask": packed_outline(self.mask.shape, 1)}

    @override
    def settings(self) -> dict[str, Any]:
        return {}

    @override
    @classmethod
    def restored(cls, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any], shape: tuple[int, int], dtype: torch.dtype) -> Form:
        mask = unpack(tensors["mask"], 1, shape[1]).bool()
        return cls(expect(tensors["values"], (int(mask.sum()),)).to(dtype), mask)

    @override
    @property
    def values(self) -> int:
        return self.kept.numel()
