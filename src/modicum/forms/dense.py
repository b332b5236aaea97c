"""Dense: every entry stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from typing_extensions import override

from modicum.forms.form import Form, expect


class Dense(Form):
    """All entries of a (rows, columns) matrix in its own dtype."""

    kind = "dense"

    def __init__(self, weight: torch.Tensor):
        self.weight, self.shape, self.dtype = weight, (weight.shape[0], weight.shape[1]), weight.dtype

    @override
    def dense(self) -> torch.Tensor:
        return self.weight

    @override
    def zeroed(self, where: torch.Tensor) -> Form:
        return Dense(self.weight.masked_fill(where, 0))

    @override
    def movable(self) -> dict[str, torch.Tensor]:
        return {"weight": self.weight}

    @override
    def having(self, numbers: Mapping[str, torch.Tensor]) -> Form:
        return Dense(numbers["weight"])

    @override
    def tensors(self) -> dict[str, torch.Tensor]:
        return {"weight": self.weight.contiguous()}

    @override
    def settings(self) -> dict[str, Any]:
        return {}

    @override
    @classmethod
    def restored(cls, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any], shape: tuple[int, int], dtype: torch.dtype) -> Form:
        return cls(expect(tensors["weight"], shape).to(dtype))

    @override
    @property
    def values(self) -> int:
        return self.weight.numel()
