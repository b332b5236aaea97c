"""LowRank: two thin factors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from typing_extensions import override

from modicum.forms.form import Form


class LowRank(Form):
    """``left @ right`` with left (rows, rank) and right (rank, columns)."""

    kind = "low_rank"

    def __init__(self, left: torch.Tensor, right: torch.Tensor):
        self.left, self.right, self.shape, self.dtype = left, right, (left.shape[0], right.shape[1]), left.dtype

    @property
    def rank(self) -> int:
        """Inner size."""
        return self.left.shape[1]

    @override
    def dense(self) -> torch.Tensor:
        return self.value().to(self.dtype)

    @override
    def value(self) -> torch.Tensor:
        return self.left.float() @ self.right.float()

    @override
    def product(self, inputs: torch.Tensor) -> torch.Tensor:
        return (inputs @ self.right.to(inputs.dtype).T) @ self.left.to(inputs.dtype).T

    @override
    def movable(self) -> dict[str, torch.Tensor]:
        return self.tensors()

    @override
    def having(self, numbers: Mapping[str, torch.Tensor]) -> Form:
        return LowRank(numbers["left"], numbers["right"])

    @override
    def tensors(self) -> dict[str, torch.Tensor]:
        return {"left": self.left.contiguous(), "right": self.right.contiguous()}

    @override
    def settings(self) -> dict[str, Any]:
        return {}

    @override
    @classmethod
    def restored(cls, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any], shape: tuple[int, int], dtype: torch.dtype) -> Form:
        return cls(tensors["left"].to(dtype), tensors["right"].to(dtype))

    @override
    @property
    def values(self) -> int:
        return self.left.numel() + self.right.numel()
