"""Swapped: a form some of whose directions are exchanged for others, in blocks of rows or columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from typing_extensions import override

from modicum.forms.composite import Composite
from modicum.forms.form import Form, expect


def swap(value: torch.Tensor, away: torch.Tensor, toward: torch.Tensor) -> torch.Tensor:
    """``(I - a aᵀ + t tᵀ)`` times blocks of rows of ``value`` (rows, columns), with ``away`` and ``toward`` (blocks, rows / blocks) of length one."""
    blocks = value.reshape(len(away), away.shape[1], -1)
    along = lambda vectors: vectors[:, :, None] * torch.einsum("br,brc->bc", vectors, blocks)[:, None]
    return (blocks + (along(normal(toward)) - along(normal(away)))).reshape(value.shape)


def normal(vectors: torch.Tensor) -> torch.Tensor:
    """Rows scaled to length one."""
    return vectors.float() / vectors.float().norm(dim=1, keepdim=True).clamp_min(1e-30)


class Swapped(Composite):
    """Block ``b`` of the rows of ``inner`` times ``I - a_b a_bᵀ + t_b t_bᵀ``, or of its columns; ``away`` and ``toward`` (blocks, side / blocks)."""

    kind = "swapped"

    def __init__(self, inner: Form, away: torch.Tensor, toward: torch.Tensor, columns: bool = False):
        self.parts, self.shape, self.dtype = (inner,), inner.shape, inner.dtype
        self.away, self.toward, self.columns = away, toward, columns

    @override
    def made_of(self, parts: Sequence[Form]) -> Form:
        return Swapped(parts[0], self.away, self.toward, self.columns)

    @override
    def own(self) -> dict[str, torch.Tensor]:
        return {"away": self.away, "toward": self.toward}

    @override
    def said(self) -> dict[str, Any]:
        return {"columns": self.columns}

    @override
    def value(self) -> torch.Tensor:
        value = self.parts[0].value()
        return swap(value.T, self.away, self.toward).T if self.columns else swap(value, self.away, self.toward)

    @override
    @classmethod
    def joined(
        cls, parts: tuple[Form, ...], own: Mapping[str, torch.Tensor], said: Mapping[str, Any], shape: tuple[int, int], dtype: torch.dtype
    ) -> Form:
        (inner,) = parts
        columns, blocks = bool(said["columns"]), len(own["away"])
        side = shape[1 if columns else 0]
        if inner.shape != shape or not blocks or side % blocks or own.keys() != {"away", "toward"}:
            raise ValueError(f"a form of {shape} belongs under {blocks} blocks of a side")
        away, toward = (expect(own[name], (blocks, side // blocks)) for name in ("away", "toward"))
        return cls(inner, away, toward, columns)
