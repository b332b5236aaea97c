"""Normalized: a form whose rows or columns are given lengths, as in weights told by direction and magnitude."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from typing_extensions import override

from modicum.forms.composite import Composite
from modicum.forms.form import Form, expect


class Normalized(Composite):
    """``lengths[:, None] · inner / |inner|``, the norm taken of each row, or of each column under ``axis="columns"``."""

    kind = "normalized"

    def __init__(self, inner: Form, lengths: torch.Tensor, axis: str = "rows"):
        self.parts, self.lengths, self.axis, self.shape, self.dtype = (inner,), lengths, axis, inner.shape, inner.dtype

    @override
    def made_of(self, parts: Sequence[Form]) -> Form:
        return Normalized(parts[0], self.lengths, self.axis)

    @override
    def own(self) -> dict[str, torch.Tensor]:
        return {"lengths": self.lengths}

    @override
    def said(self) -> dict[str, Any]:
        return {"axis": self.axis}

    @override
    def value(self) -> torch.Tensor:
        value, over = self.parts[0].value(), 1 if self.axis == "rows" else 0
        return value * (self.lengths.float() / value.norm(dim=over).clamp_min(torch.finfo(torch.float32).tiny)).unsqueeze(over)

    @override
    @classmethod
    def joined(
        cls, parts: tuple[Form, ...], own: Mapping[str, torch.Tensor], said: Mapping[str, Any], shape: tuple[int, int], dtype: torch.dtype
    ) -> Form:
        (inner,), axis = parts, str(said["axis"])
        if inner.shape != shape or axis not in ("rows", "columns") or own.keys() != {"lengths"}:
            raise ValueError(f"a form of {shape} belongs under the lengths of its rows or columns")
        return cls(inner, expect(own["lengths"], (shape[0 if axis == "rows" else 1],)), axis)
