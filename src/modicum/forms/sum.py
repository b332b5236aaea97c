"""Sum: several forms added, such as codes plus a low-rank repair, or a base and what was learnt beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from typing_extensions import override

from modicum.forms.composite import Composite
from modicum.forms.form import Form


class Sum(Composite):
    """The sum of ``parts``, forms of one shape; added in float32, then rounded once to the dtype of the first."""

    kind = "sum"

    def __init__(self, parts: tuple[Form, ...]):
        self.parts, self.shape, self.dtype = parts, parts[0].shape, parts[0].dtype

    @override
    def made_of(self, parts: Sequence[Form]) -> Form:
        return Sum(tuple(parts))

    @override
    def value(self) -> torch.Tensor:
        return torch.stack([part.dense().float() for part in self.parts]).sum(0)

    @override
    def product(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.stack([part.product(inputs) for part in self.parts]).sum(0)

    @override
    @classmethod
    def joined(
        cls, parts: tuple[Form, ...], own: Mapping[str, torch.Tensor], said: Mapping[str, Any], shape: tuple[int, int], dtype: torch.dtype
    ) -> Form:
        if not parts or own or any(part.shape != shape for part in parts):
            raise ValueError("parts of one shape belong in a sum, and nothing else")
        return cls(parts)
