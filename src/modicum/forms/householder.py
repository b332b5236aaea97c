"""Householder: a form whose rows are reflected, one whole reflection after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from typing_extensions import override

from modicum.forms.composite import Composite
from modicum.forms.form import Form, expect


class Householder(Composite):
    """``inner @ Π (I - 2 u uᵀ / |u|²)`` over the columns ``u`` of ``vectors`` (columns, count), the first one nearest to ``inner``."""

    kind = "householder"

    def __init__(self, inner: Form, vectors: torch.Tensor):
        self.parts, self.vectors, self.shape, self.dtype = (inner,), vectors, inner.shape, inner.dtype

    @override
    def made_of(self, parts: Sequence[Form]) -> Form:
        return Householder(parts[0], self.vectors)

    @override
    def own(self) -> dict[str, torch.Tensor]:
        return {"vectors": self.vectors}

    @override
    def value(self) -> torch.Tensor:
        value, vectors = self.parts[0].value(), self.vectors.float()
        for unit in (vectors / vectors.norm(dim=0).clamp_min(1e-30)).T:
            value = value - 2 * torch.outer(value @ unit, unit)
        return value

    @override
    @classmethod
    def joined(
        cls, parts: tuple[Form, ...], own: Mapping[str, torch.Tensor], said: Mapping[str, Any], shape: tuple[int, int], dtype: torch.dtype
    ) -> Form:
        (inner,) = parts
        if inner.shape != shape or own.keys() != {"vectors"}:
            raise ValueError(f"a form of {shape} belongs beside the vectors that reflect it")
        return cls(inner, expect(own["vectors"], (shape[1], own["vectors"].shape[1])))
