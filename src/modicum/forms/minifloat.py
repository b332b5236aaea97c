"""What forms of four- and six-bit floats have in common: their levels, and scales of eight bits for every few columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from typing_extensions import override

from modicum.forms.form import Form, expect
from modicum.forms.packing import pack, unpack

_BIAS = 127


@dataclass(frozen=True)
class Layout:
    """Bits of an exponent and a mantissa, how many columns share a scale, and what that is stored as.

    A scale is an E4M3 number over a power of two for the whole matrix, or an exponent alone.
    """

    name: str
    exponent: int
    mantissa: int
    group: int
    stored: torch.dtype

    @property
    def bits(self) -> int:
        """Bits of a number, its sign with it."""
        return 1 + self.exponent + self.mantissa

    @property
    def levels(self) -> torch.Tensor:
        """What codes of one half stand for, float32, rising from 0; those of the other half are the same below zero."""
        return _levels(self.exponent, self.mantissa)

    @property
    def top(self) -> float:
        """The largest of them."""
        return float(self.levels[-1])

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """What codes stand for, float32, in units of their scale."""
        return torch.cat([self.levels, -self.levels])[codes.int()]

    def value(self, stored: torch.Tensor, shift: int) -> torch.Tensor:
        """Scales in float32."""
        if self.stored == torch.uint8:
            return torch.ldexp(torch.ones(stored.shape), stored.to(torch.int32) - _BIAS)
        return torch.ldexp(stored.float(), torch.tensor(-shift))


@cache
def _levels(exponent: int, mantissa: int) -> torch.Tensor:
    fractions = torch.arange(2**mantissa) / 2**mantissa
    bias = 2 ** (exponent - 1) - 1
    return torch.cat([fractions * 2.0 ** (1 - bias), *((1 + fractions) * 2.0 ** (power - bias) for power in range(1, 2**exponent))])


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("nvfp4", 2, 1, 16, torch.float8_e4m3fn),
        Layout("mxfp4", 2, 1, 32, torch.uint8),
        Layout("mxfp6_e2m3", 2, 3, 32, torch.uint8),
        Layout("mxfp6_e3m2", 3, 2, 32, torch.uint8),
    )
}


class Minifloat(Form):
    """``level(codes) · scale``, the scale an exponent, ``2^(scale - 127)``, or of NVFP4 ``scale / 2^shift``.

    *Shapes:* ``codes`` uint8 (rows, columns) below 2^bits; ``scale`` (rows, groups) of the layout's dtype; a row's last group may be ragged. Numbers
    of two to four significant bits times a power of two, or of two times one of four: every dtype holds the product whole, whoever computes it.
    """

    bits: ClassVar[int]

    def __init__(self, codes: torch.Tensor, scale: torch.Tensor, layout: Layout, shift: int, dtype: torch.dtype):
        self.codes, self.scale, self.layout, self.shift, self.dtype = codes, scale, layout, shift, dtype
        self.shape = (codes.shape[0], codes.shape[1])

    @override
    def dense(self) -> torch.Tensor:
        step = self.layout.value(self.scale, self.shift).repeat_interleave(self.layout.group, 1)[:, : self.shape[1]]
        return (self.layout.decode(self.codes) * step).to(self.dtype)

    @override
    def zeroed(self, where: torch.Tensor) -> Form:
        return type(self)(self.codes.masked_fill(where, 0), self.scale, self.layout, self.shift, self.dtype)

    @override
    def tensors(self) -> dict[str, torch.Tensor]:
        return {"codes": pack(self.codes, self.bits), "scale": self.scale.contiguous()}

    @override
    def settings(self) -> dict[str, Any]:
        return {"layout": self.layout.name, "shift": self.shift}

    @override
    @classmethod
    def restored(cls, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any], shape: tuple[int, int], dtype: torch.dtype) -> Form:
        layout, shift = LAYOUTS[settings["layout"]], int(settings["shift"])
        if layout.bits != cls.bits:
            raise ValueError(f"numbers of {layout.bits} bits are none of {cls.bits}")
        if abs(shift) > _BIAS:
            raise ValueError(f"a shift of {shift} is not from {-_BIAS} to {_BIAS}")
        scale = expect(tensors["scale"], (shape[0], -(-shape[1] // layout.group)), layout.stored)
        codes = unpack(tensors["codes"], cls.bits, shape[1])
        return cls(expect(codes, shape), scale, layout, shift, dtype)

    @override
    @property
    def values(self) -> int:
        return self.codes.numel()
