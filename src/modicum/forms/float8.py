"""Float8: E4M3 values with one scale per row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from typing_extensions import override

from modicum.forms.form import Form, expect


class Float8(Form):
    """``codes · scale`` with codes float8_e4m3fn (rows, columns) and scale (rows, 1) in the weight's dtype."""

    kind = "float8"

    def __init__(self, codes: torch.Tensor, scale: torch.Tensor):
        self.codes, self.scale, self.shape, self.dtype = codes, scale, (codes.shape[0], codes.shape[1]), scale.dtype

    @override
    def dense(self) -> torch.Tensor:
        return self.codes.to(self.dtype) * self.scale

    @override
    def tensors(self) -> dict[str, torch.Tensor]:
        return {"codes": self.codes.contiguous(), "scale": self.scale.contiguous()}

    @override
    def settings(self) -> dict[str, Any]:
        return {}

    @override
    @classmethod
    def restored(cls, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any], shape: tuple[int, int], dtype: torch.dtype) -> Form:
        return cls(expect(tensors["codes"], shape, torch.float8_e4m3fn), expect(tensors["scale"], (shape[0], 1)).to(dtype))

    @override
    @property
    def values(self) -> int:
        return self.codes.numel()
