"""Float4: E2M1 numbers under scales of eight bits for every few columns, as NVFP4 and MXFP4 have them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from typing_extensions import override

from modicum.forms.form import Form, expect
from modicum.forms.packing import pack, unpack

# What the codes 0 to 7 stand for; those from 8 on are the same below zero.
LEVELS = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
_SIGNED = torch.cat([LEVELS, -LEVELS])
_BIAS = 127


@dataclass(frozen=True)
class Layout:
    """How many columns share a scale, and what it is stored as: an E4M3 number over a power of two for the whole matrix, or an exponent alone."""

    name: str
    group: int
    stored: torch.dtype

    def value(self, stored: torch.Tensor, shift: int) -> torch.Tensor:
        """Scales in float32."""
        if self.stored == torch.uint8:
            return torch.ldexp(torch.ones(stored.shape), stored.to(torch.int32) - _BIAS)
        return torch.ldexp(stored.float(), torch.tensor(-shift))


LAYOUTS = {layout.name: layout for layout in (Layout("nvfp4", 16, torch.float8_e4m3fn), Layout("mxfp4", 32, torch.uint8))}


class Float4(Form):
    """``LEVELS[codes] · scale``, the scale ``2^(scale - 127)`` (mxfp4) or ``scale / 2^shift`` (nvfp4).

    *Shapes:* ``codes`` uint8 (rows, columns) below 16; ``scale`` (rows, groups) of the layout's dtype; a row's last group may be ragged. Numbers of
    two significant bits times one of four times a power of two: every dtype holds the product whole, whoever computes it.
    """

    kind = "float4"

    def __init__(self, codes: torch.Tensor, scale: torch.Tensor, layout: Layout, shift: int, dtype: torch.dtype):
        self.codes, self.scale, self.layout, self.shift, self.dtype = codes, scale, layout, shift, dtype
        self.shape = (codes.shape[0], codes.shape[1])

    @override
    def dense(self) -> torch.Tensor:
        step = self.layout.value(self.scale, self.shift).repeat_interleave(self.layout.group, 1)[:, : self.shape[1]]
        return (_SIGNED[self.codes.int()] * step).to(self.dtype)

    @override
    def zeroed(self, where: torch.Tensor) -> Form:
        return Float4(self.codes.masked_fill(where, 0), self.scale, self.layout, self.shift, self.dtype)

    @override
    def tensors(self) -> dict[str, torch.Tensor]:
        return {"codes": pack(self.codes, 4), "scale": self.scale.contiguous()}

    @override
    def settings(self) -> dict[str, Any]:
        return {"layout": self.layout.name, "shift": self.shift}

    @override
    @classmethod
    def restored(cls, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any], shape: tuple[int, int], dtype: torch.dtype) -> Form:
        layout, shift = LAYOUTS[settings["layout"]], int(settings["shift"])
        if abs(shift) > _BIAS:
            raise ValueError(f"a shift of {shift} is not from {-_BIAS} to {_BIAS}")
        scale = expect(tensors["scale"], (shape[0], -(-shape[1] // layout.group)), layout.stored)
        codes = unpack(tensors["codes"], 4, shape[1])
        return cls(expect(codes, shape), scale, layout, shift, dtype)

    @override
    @property
    def values(self) -> int:
        return self.codes.numel()
