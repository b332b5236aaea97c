"""Blockwise: codes of sixteen levels from -1 to 1 under a scale for every few columns, as bitsandbytes has them in NF4 and FP4."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from typing_extensions import override

from modicum.forms.form import Form, expect
from modicum.forms.packing import pack, unpack

# Levels by code: quantiles of a normal distribution, which have an exact zero, and a sign over eight magnitudes of two significant bits.
_HALF = torch.tensor([0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0])
LEVELS = {
    "nf4": torch.tensor(
        [
            -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
            -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
            0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
        ]
    ),
    "fp4": torch.cat([_HALF, 0 - _HALF]) / 12,
}  # fmt: skip
ZERO = {"nf4": 7, "fp4": 0}
# Scales that share a scale of theirs.
OUTER = 256


@cache
def steps() -> torch.Tensor:
    """Float32 (256,) that codes of scales stand for, rising: of each power of ten from 1e-6 to 1 twice as many as of the one below, 0 and 1."""
    edges = [torch.linspace(0.1, 1, 2**power + 1) for power in range(7)]
    found = torch.cat([(edge[:-1] + edge[1:]) / 2 * 10 ** (power - 6) for power, edge in enumerate(edges)])
    return torch.cat([found, -found, torch.tensor([0.0, 1.0])]).sort().values


@dataclass(frozen=True, eq=False)
class Doubled:
    """Scales in eight bits: ``steps[codes] · outer + offset``.

    *Shapes:* ``codes`` uint8 (rows, groups); ``outer`` float32, one for 256 of them row by row; ``offset`` float32 (1,).
    """

    codes: torch.Tensor
    outer: torch.Tensor
    offset: torch.Tensor

    def value(self) -> torch.Tensor:
        """Scales (rows, groups) in float32."""
        spread = self.outer.repeat_interleave(OUTER)[: self.codes.numel()]
        return (steps()[self.codes.int()].flatten() * spread + self.offset).view(self.codes.shape)


class Blockwise(Form):
    """``LEVELS[codes] · scale``, computed in float32 and rounded once.

    *Shapes:* ``codes`` uint8 (rows, columns) below 16; ``scale`` float32 (rows, groups), or what stands for them in eight bits; a row's last group
    may be ragged.
    """

    kind = "blockwise"

    def __init__(self, codes: torch.Tensor, scale: torch.Tensor | Doubled, type: str, block: int, dtype: torch.dtype):
        self.codes, self.scale, self.type, self.block, self.dtype = codes, scale, type, block, dtype
        self.shape = (codes.shape[0], codes.shape[1])

    @override
    def value(self) -> torch.Tensor:
        scale = self.scale.value() if isinstance(self.scale, Doubled) else self.scale
        return LEVELS[self.type][self.codes.int()] * scale.repeat_interleave(self.block, 1)[:, : self.shape[1]]

    @override
    def dense(self) -> torch.Tensor:
        return self.value().to(self.dtype)

    @override
    def zeroed(self, where: torch.Tensor) -> Form:
        return Blockwise(self.codes.masked_fill(where, ZERO[self.type]), self.scale, self.type, self.block, self.dtype)

    @override
    def movable(self) -> dict[str, torch.Tensor]:
        return {"outer": self.scale.outer, "offset": self.scale.offset} if isinstance(self.scale, Doubled) else {"scale": self.scale}

    @override
    def having(self, numbers: Mapping[str, torch.Tensor]) -> Form:
        old = self.scale
        scale = Doubled(old.codes, numbers["outer"], numbers["offset"]) if isinstance(old, Doubled) else numbers["scale"]
        return Blockwise(self.codes, scale, self.type, self.block, self.dtype)

    @override
    def tensors(self) -> dict[str, torch.Tensor]:
        found, scale = {"codes": pack(self.codes, 4)}, self.scale
        if not isinstance(scale, Doubled):
            return found | {"scale": scale.contiguous()}
        return found | {"steps": scale.codes.contiguous(), "outer": scale.outer.contiguous(), "offset": scale.offset}

    @override
    def settings(self) -> dict[str, Any]:
        return {"type": self.type, "block": self.block}

    @override
    @classmethod
    def restored(cls, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any], shape: tuple[int, int], dtype: torch.dtype) -> Form:
        type, block = settings["type"], int(settings["block"])
        if not isinstance(type, str) or type not in LEVELS or block < 1:
            raise ValueError(f"blocks of {block} in {type!r} are not known")
        groups = (shape[0], -(-shape[1] // block))
        if "steps" in tensors:
            count = -(-groups[0] * groups[1] // OUTER)
            own = [expect(tensors[name], (size,), torch.float32) for name, size in (("outer", count), ("offset", 1))]
            scale: torch.Tensor | Doubled = Doubled(expect(tensors["steps"], groups, torch.uint8), *own)
        else:
            scale = expect(tensors["scale"], groups, torch.float32)
        return cls(expect(unpack(tensors["codes"], 4, shape[1]), shape), scale, type, block, dtype)

    @override
    @property
    def values(self) -> int:
        return self.codes.numel()
