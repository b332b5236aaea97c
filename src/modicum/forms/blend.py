"""Blend: a base and weighted steps away from it, each told by a form on that base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from typing_extensions import override

from modicum.forms.composite import Composite
from modicum.forms.form import Form


class Blend(Composite):
    """``base + Σ weights[i] · (parts[i + 1] - base)``, the base first; computed in float64 and rounded once.

    So scaling and adding act on what a delta changes, for forms that multiply the base as for forms that add to it, and without cross terms.
    """

    kind = "blend"

    def __init__(self, parts: tuple[Form, ...], weights: tuple[float, ...]):
        self.parts, self.weights, self.shape, self.dtype = parts, weights, parts[0].shape, parts[0].dtype

    @override
    def made_of(self, parts: Sequence[Form]) -> Form:
        return Blend(tuple(parts), self.weights)

    @override
    def said(self) -> dict[str, Any]:
        return {"weights": list(self.weights)}

    @override
    def value(self) -> torch.Tensor:
        base = self.parts[0].value().double()
        moved = sum((weight * (part.value().double() - base) for weight, part in zip(self.weights, self.parts[1:])), torch.zeros(()))
        return base + moved

    @override
    @classmethod
    def joined(
        cls, parts: tuple[Form, ...], own: Mapping[str, torch.Tensor], said: Mapping[str, Any], shape: tuple[int, int], dtype: torch.dtype
    ) -> Form:
        weights = tuple(float(weight) for weight in said["weights"])
        if own or len(parts) != len(weights) + 1 or any(part.shape != shape for part in parts):
            raise ValueError("a base and one part of its shape for each weight belong in a blend")
        return cls(parts, weights)
