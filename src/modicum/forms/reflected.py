"""Reflected: a form whose rows are reflected in blocks, as a product with block-diagonal Householder matrices."""

from __future__ import annotations

import torch
from typing_extensions import override

from modicum.forms.composite import Turned
from modicum.forms.form import expect


def reflect(value: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """``(I - 2 u uᵀ)`` times blocks of rows of ``value`` (rows, columns); ``vectors`` (blocks, rows / blocks), scaled to length one here."""
    unit = vectors.float() / vectors.float().norm(dim=1, keepdim=True).clamp_min(1e-30)
    blocks = value.reshape(len(unit), unit.shape[1], -1)
    return (blocks - 2 * unit[:, :, None] * torch.einsum("br,brc->bc", unit, blocks)[:, None]).reshape(value.shape)


class Reflected(Turned):
    """Block ``b`` of the rows of ``inner`` times ``I - 2 u_b u_bᵀ / |u_b|²``; ``vectors`` (blocks, rows / blocks)."""

    kind = "reflected"
    called = "vectors"

    @override
    def value(self) -> torch.Tensor:
        return reflect(self.parts[0].value(), self.tensor)

    @override
    @classmethod
    def fitting(cls, stored: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
        blocks = len(stored)
        if not blocks or shape[0] % blocks:
            raise ValueError(f"a form of {shape} belongs under {blocks} blocks of rows")
        return expect(stored, (blocks, shape[0] // blocks))
