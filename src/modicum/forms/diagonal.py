"""Diagonal: a form whose rows and columns are multiplied by one number each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from typing_extensions import override

from modicum.forms.composite import Composite
from modicum.forms.form import Form, expect


class Diagonal(Composite):
    """``rows[:, None] · inner · columns`` with rows (rows,) and columns (columns,), either of which may be absent."""

    kind = "diagonal"

    def __init__(self, inner: Form, rows: torch.Tensor | None = None, columns: torch.Tensor | None = None):
        self.parts, self.rows, self.columns, self.shape, self.dtype = (inner,), rows, columns, inner.shape, inner.dtype

    @override
    def made_of(self, parts: Sequence[Form]) -> Form:
        return Diagonal(parts[0], self.rows, self.columns)

    @override
    def own(self) -> dict[str, torch.Tensor]:
        return {name: each for name, each in (("rows", self.rows), ("columns", self.columns)) if each is not None}

    @override
    def value(self) -> torch.Tensor:
        value = self.parts[0].value()
        value = value if self.rows is None else value * self.rows.float()[:, None]
        return value if self.columns is None else value * self.columns.float()

    @override
    def product(self, inputs: torch.Tensor) -> torch.Tensor:
        taken = self.parts[0].product(inputs if self.columns is None else inputs * self.columns.to(inputs.dtype))
        return taken if self.rows is None else taken * self.rows.to(inputs.dtype)

    @override
    @classmethod
    def joined(
        cls, parts: tuple[Form, ...], own: Mapping[str, torch.Tensor], said: Mapping[str, Any], shape: tuple[int, int], dtype: torch.dtype
    ) -> Form:
        (inner,) = parts
        if inner.shape != shape or own.keys() - {"rows", "columns"}:
            raise ValueError(f"a form of {shape} belongs under its rows and columns")
        rows, columns = (expect(own[name], (size,)) if name in own else None for name, size in zip(("rows", "columns"), shape))
        return cls(inner, rows, columns)
