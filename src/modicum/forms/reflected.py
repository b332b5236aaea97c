"""Reflected: a form whose rows are reflected in blocks, as a product with block-diagonal Householder matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from typing_extensions import override

from modicum.forms.composite import Composite
from modicum.forms.form import Form, expect


def reflect(value: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """``(I - 2 u uᵀ)`` times blocks of rows of ``value`` (rows, columns); ``vectors`` (blocks, rows / blocks), scaled to length one here."""
    unit = vectors.float() / vectors.float().norm(dim=1, keepdim=True).clamp_min(1e-30)
    blocks = value.reshape(len(unit), unit.shape[1], -1)
    return (blocks - 2 * unit[:, :, None] * torch.einsum("br,brc->bc", unit, blocks)[:, None]).reshape(value.shape)


class Reflected(Composite):
    """Block ``b`` of the rows of ``inner`` times ``I - 2 u_b u_bᵀ / |u_b|²``; ``vectors`` (blocks, rows / blocks)."""

    kind = "reflected"

    def __init__(self, inner: Form, vectors: torch.Tensor):
        self.parts, self.vectors, self.shape, self.dtype = (inner,), vectors, inner.shape, inner.dtype

    @override
    def made_of(self, parts: Sequence[Form]) -> Form:
        return Reflected(parts[0], self.vectors)

    @override
    def own(self) -> dict[str, torch.Tensor]:
        return {"vectors": self.vectors}

    @override
    def value(self) -> torch.Tensor:
        return reflect(self.parts[0].value(), self.vectors)

    @override
    @classmethod
    def joined(
        cls, parts: tuple[Form, ...], own: Mapping[str, torch.Tensor], said: Mapping[str, Any], shape: tuple[int, int], dtype: torch.dtype
    ) -> Form:
        (inner,) = parts
        blocks = len(own["vectors"])
        if inner.shape != shape or not blocks or shape[0] % blocks:
            raise ValueError(f"a form of {shape} belongs under {blocks} blocks of rows")
        return cls(inner, expect(own["vectors"], (blocks, shape[0] // blocks)))
