"""Hadamard: forms multiplied entry by entry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from typing_extensions import override

from modicum.forms.composite import Composite
from modicum.forms.form import Form


class Hadamard(Composite):
    """``parts[0] * parts[1] * ...`` entry by entry, forms of one shape, in float32."""

    kind = "hadamard"

    def __init__(self, parts: tuple[Form, ...]):
        self.parts, self.shape, self.dtype = parts, parts[0].shape, parts[0].dtype

    @override
    def made_of(self, parts: Sequence[Form]) -> Form:
        return Hadamard(tuple(parts))

    @override
    def value(self) -> torch.Tensor:
        return reduce(torch.mul, [part.value() for part in self.parts])

    @override
    @classmethod
    def joined(
        cls, parts: tuple[Form, ...], own: Mapping[str, torch.Tensor], said: Mapping[str, Any], shape: tuple[int, int], dtype: torch.dtype
    ) -> Form:
        if not parts or own or any(part.shape != shape for part in parts):
            raise ValueError("parts of one shape belong in a product of entries, and nothing else")
        return cls(parts)
