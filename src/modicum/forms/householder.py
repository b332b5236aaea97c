"""Householder: a form whose rows are reflected, one whole reflection after the other."""

from __future__ import annotations

import torch
from typing_extensions import override

from modicum.forms.composite import Turned
from modicum.forms.form import expect


class Householder(Turned):
    """``inner @ Π (I - 2 u uᵀ / |u|²)`` over the columns ``u`` of ``vectors`` (columns, count), the first one nearest to ``inner``."""

    kind = "householder"
    called = "vectors"

    @override
    def value(self) -> torch.Tensor:
        value, vectors = self.parts[0].value(), self.tensor.float()
        for unit in (vectors / vectors.norm(dim=0).clamp_min(1e-30)).T:
            value = value - 2 * torch.outer(value @ unit, unit)
        return value

    @override
    @classmethod
    def fitting(cls, stored: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
        return expect(stored, (shape[1], stored.shape[1]))
