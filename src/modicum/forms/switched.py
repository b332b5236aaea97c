"""Switched: a form some of whose entries are off, told by one bit each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from typing_extensions import override

from modicum.forms.composite import Composite
from modicum.forms.form import Form
from modicum.forms.packing import pack, unpack


class Switched(Composite):
    """``inner`` where ``mask`` (rows, columns) is true, zero elsewhere; a file holds one bit per entry."""

    kind = "switched"

    def __init__(self, inner: Form, mask: torch.Tensor):
        self.parts, self.mask, self.shape, self.dtype = (inner,), mask, inner.shape, inner.dtype

    @override
    def made_of(self, parts: Sequence[Form]) -> Form:
        return Switched(parts[0], self.mask)

    @override
    def own(self) -> dict[str, torch.Tensor]:
        return {"mask": pack(self.mask.to(torch.uint8), 1)}

    @override
    def value(self) -> torch.Tensor:
        return self.parts[0].value().masked_fill(~self.mask, 0.0)

    @override
    @classmethod
    def joined(
        cls, parts: tuple[Form, ...], own: Mapping[str, torch.Tensor], said: Mapping[str, Any], shape: tuple[int, int], dtype: torch.dtype
    ) -> Form:
        (inner,) = parts
        mask = unpack(own["mask"], 1, shape[1]).bool()
        if inner.shape != shape or tuple(mask.shape) != shape or own.keys() != {"mask"}:
            raise ValueError(f"a form of {shape} belongs under its mask")
        return cls(inner, mask)
