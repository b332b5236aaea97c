"""Half: half precision with one scale per row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from typing_extensions import override

from modicum.forms.form import Form, expect


class Half(Form):
    """``halves · scale`` with halves float16 (rows, columns) and scale (rows, 1) in the weight's dtype."""

    kind = "half"

    def __init__(self, halves: torch.Tensor, scale: torch.Tensor):
        self.halves, self.scale, self.shape, self.dtype = halves, scale, (halves.shape[0], halves.shape[1]), scale.dtype

    @override
    def dense(self) -> torch.Tensor:
        wide = torch.promote_types(self.dtype, torch.float32)
        return (self.halves.to(wide) * self.scale.to(wide)).to(self.dtype)

    @override
    def tensors(self) -> dict[str, torch.Tensor]:
        return {"halves": self.halves.contiguous(), "scale": self.scale.contiguous()}

    @override
    def settings(self) -> dict[str, Any]:
        return {}

    @override
    @classmethod
    def restored(cls, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any], shape: tuple[int, int], dtype: torch.dtype) -> Form:
        return cls(expect(tensors["halves"], shape, torch.float16), expect(tensors["scale"], (shape[0], 1)).to(dtype))

    @override
    @property
    def values(self) -> int:
        return self.halves.numel()
