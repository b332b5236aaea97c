"""Chained: a matrix product operator of three tensors, a large one between two small ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from typing_extensions import override

from modicum.forms.composite import Composite
from modicum.forms.form import Form

Sides = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


class Chained(Composite):
    """``Σ left[i₁j₁, a] · centre[a, i₂j₂b] · right[b, i₃j₃]`` with rows ``i₁i₂i₃`` and columns ``j₁j₂j₃``, in float32.

    ``sides`` are ((i₁, j₁), (i₂, j₂), (i₃, j₃)); left is (i₁·j₁, a), centre (a, i₂·j₂·b), right (b, i₃·j₃).
    """

    kind = "chained"

    def __init__(self, left: Form, centre: Form, right: Form, sides: Sides):
        self.parts, self.sides, self.dtype = (left, centre, right), sides, left.dtype
        (i, j), (m, n), (p, q) = sides
        self.shape = (i * m * p, j * n * q)
        wanted = ((i * j, centre.shape[0]), (centre.shape[0], m * n * right.shape[0]), (right.shape[0], p * q))
        if min(min(pair) for pair in sides) < 1 or tuple(part.shape for part in self.parts) != wanted:
            raise ValueError(f"tensors of {wanted} belong in a chain of sides {sides}")

    @override
    def made_of(self, parts: Sequence[Form]) -> Form:
        return Chained(parts[0], parts[1], parts[2], self.sides)

    @override
    def value(self) -> torch.Tensor:
        left, centre, right = (part.value() for part in self.parts)
        return chained(left, centre, right, self.sides)

    @override
    def said(self) -> dict[str, Any]:
        return {"sides": [list(pair) for pair in self.sides]}

    @override
    @classmethod
    def joined(
        cls, parts: tuple[Form, ...], own: Mapping[str, torch.Tensor], said: Mapping[str, Any], shape: tuple[int, int], dtype: torch.dtype
    ) -> Form:
        left, centre, right = parts
        first, second, third = ((int(rows), int(columns)) for rows, columns in said["sides"])
        made = cls(left, centre, right, (first, second, third))
        if own or made.shape != shape:
            raise ValueError(f"three tensors whose sides multiply to {shape} belong in a chain")
        return made


def chained(left: torch.Tensor, centre: torch.Tensor, right: torch.Tensor, sides: Sides) -> torch.Tensor:
    """The matrix (rows, columns) of three tensors; differentiable."""
    (i, j), (m, n), (p, q) = sides
    whole = (left @ centre).reshape(i * j * m * n, len(right)) @ right
    return whole.reshape(i, j, m, n, p, q).permute(0, 2, 4, 1, 3, 5).reshape(i * m * p, j * n * q)
