"""What forms of floating-point numbers with one scale per row have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from typing_extensions import override

from modicum.forms.form import Form, expect


class Scaled(Form):
    """``numbers · scale`` with numbers (rows, columns) of the form's own dtype and scale (rows, 1) in the weight's dtype."""

    # What the numbers are called on disk, and their dtype.
    part: ClassVar[str]
    stored: ClassVar[torch.dtype]

    def __init__(self, numbers: torch.Tensor, scale: torch.Tensor):
        self.numbers, self.scale, self.shape, self.dtype = numbers, scale, (numbers.shape[0], numbers.shape[1]), scale.dtype

    @override
    def zeroed(self, where: torch.Tensor) -> Form:
        return type(self)(self.numbers.float().masked_fill(where, 0).to(self.stored), self.scale)

    @override
    def movable(self) -> dict[str, torch.Tensor]:
        return {"scale": self.scale}

    @override
    def having(self, numbers: Mapping[str, torch.Tensor]) -> Form:
        return type(self)(self.numbers, numbers["scale"])

    @override
    def tensors(self) -> dict[str, torch.Tensor]:
        return {self.part: self.numbers.contiguous(), "scale": self.scale.contiguous()}

    @override
    def settings(self) -> dict[str, Any]:
        return {}

    @override
    @classmethod
    def restored(cls, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any], shape: tuple[int, int], dtype: torch.dtype) -> Form:
        return cls(expect(tensors[cls.part], shape, cls.stored), expect(tensors["scale"], (shape[0], 1)).to(dtype))

    @override
    @property
    def values(self) -> int:
        return self.numbers.numel()
