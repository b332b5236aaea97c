"""How blocks of llama.cpp's types lie in memory: fields of bits that are taken apart and put together, and what numbers they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from modicum.core.ggml import TYPES
from modicum.forms.ggml_lattice import Lattice, lattice

# What the sixteen codes of the types without even steps stand for.
UNEVEN = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@dataclass(frozen=True)
class Field:
    """Bytes with ``bits`` of each number of a part, from its bit ``shift`` on; ``width`` neighbouring numbers lie in neighbouring bytes.

    Of 16 bits it is a float16, of 6 twice eight numbers in twelve bytes: scales and minima of a block of 256. ``signed`` bytes are taken with
    128 added.
    """

    part: str
    bytes: int = 2
    bits: int = 16
    width: int = 1
    shift: int = 0
    signed: bool = False


@dataclass(frozen=True)
class Layout:
    """Fields of a type in order.

    A code q stands for ``q - zero``, or for what a table has in that place. ``columns`` share a scale: the block's step, times a whole number below
    ``scales`` less ``bias`` where there are such. Types with ``least`` subtract it times such a whole number, or add it where there are none.
    What a file calls the step is multiplied by ``unit``. Types with a ``lattice`` store the number of a point and signs, ``low``, ``high`` and
    ``signs``, in place of codes.
    """

    fields: tuple[Field, ...]
    columns: int
    codes: int
    zero: int = 0
    scales: int = 0
    bias: float = 0
    least: bool = False
    table: tuple[int, ...] = ()
    unit: float = 1.0
    lattice: str = ""

    @property
    def points(self) -> Lattice | None:
        """What neighbouring columns may be together, where that is not everything."""
        return lattice(self.lattice) if self.lattice else None

    @property
    def exact_zero(self) -> bool:
        """Whether a code stands for zero under every scale."""
        return not self.least and not self.table

    def levels(self, codes: torch.Tensor) -> torch.Tensor:
        """What codes uint8 stand for, in float32."""
        return torch.tensor(self.table, dtype=torch.float32)[codes.int()] if self.table else codes.float().sub_(self.zero)


_STEP, _LEAST = Field("step"), Field("least")
_NIBBLES, _WIDE_NIBBLES, _PAIRS = Field("codes", 16, 4, 16), Field("codes", 128, 4, 32), Field("codes", 64, 2, 32)
_FIFTHS, _WIDE_FIFTHS = Field("codes", 4, 1, 1, 4), Field("codes", 32, 1, 32, 4)
_SIXES = Field("sides", 12, 6)

LAYOUTS = {
    "q1_0": Layout((_STEP, Field("codes", 16, 1)), 128, 2, table=(-1, 1)),
    "q2_0": Layout((_STEP, Field("codes", 16, 2)), 64, 4, 1),
    "q4_0": Layout((_STEP, _NIBBLES), 32, 16, 8),
    "q4_1": Layout((_STEP, _LEAST, _NIBBLES), 32, 16, least=True),
    "q5_0": Layout((_STEP, _FIFTHS, _NIBBLES), 32, 32, 16),
    "q5_1": Layout((_STEP, _LEAST, _FIFTHS, _NIBBLES), 32, 32, least=True),
    "q8_0": Layout((_STEP, Field("codes", 32, 8, signed=True)), 32, 256, 128),
    "q2_k": Layout((Field("sides", 16, 4, 16), _PAIRS, _STEP, _LEAST), 16, 4, scales=16, least=True),
    "q3_k": Layout(
        (Field("codes", 32, 1, 32, 2), _PAIRS, Field("sides", 8, 4, 8), Field("sides", 4, 2, 4, 4), _STEP), 16, 8, 4, scales=64, bias=32
    ),
    "q4_k": Layout((_STEP, _LEAST, _SIXES, _WIDE_NIBBLES), 32, 16, scales=64, least=True),
    "q5_k": Layout((_STEP, _LEAST, _SIXES, _WIDE_FIFTHS, _WIDE_NIBBLES), 32, 32, scales=64, least=True),
    "q6_k": Layout(
        (Field("codes", 128, 4, 64), Field("codes", 64, 2, 32, 4), Field("sides", 16, 8, signed=True), _STEP), 16, 64, 32, scales=256, bias=128
    ),
    "iq4_nl": Layout((_STEP, _NIBBLES), 32, 16, table=UNEVEN),
    "iq4_xs": Layout(
        (_STEP, Field("sides", 2, 2, 1, 4), Field("sides", 4, 4), Field("codes", 128, 4, 16)), 32, 16, scales=64, bias=32, table=UNEVEN
    ),
    "iq3_s": Layout(
        (_STEP, Field("low", 64, 8), Field("high", 8, 1), Field("signs", 32, 1), Field("sides", 4, 4)), 32, 16, scales=16, bias=-0.5,
        table=tuple(range(-15, 16, 2)), unit=2.0, lattice="iq3_s",
    ),
    "iq2_s": Layout(
        (_STEP, Field("low", 32, 8), Field("signs", 32, 1), Field("high", 8, 2), Field("sides", 8, 4)), 16, 6, scales=16, bias=-0.5,
        table=(-43, -25, -8, 8, 25, 43), unit=0.25, lattice="iq2_s",
    ),
}  # fmt: skip


def taken_apart(name: str, blocks: torch.Tensor) -> dict[str, torch.Tensor]:
    """Parts of blocks uint8 (count, bytes): ``step`` and ``least`` float16 (count,), ``codes`` (count, columns), and ``sides``, the whole numbers of
    scales and after them those of minima.
    """
    parts: dict[str, torch.Tensor] = {}
    low = 0
    for field in LAYOUTS[name].fields:
        raw = blocks[:, low : low + field.bytes]
        low += field.bytes
        if field.bits == 16:
            parts[field.part] = raw.contiguous().view(torch.float16)[:, 0]
            continue
        numbers = _six_apart(raw) if field.bits == 6 else _spread(raw, field)
        parts[field.part] = parts[field.part] | numbers if field.part in parts else numbers
    if (points := LAYOUTS[name].points) is not None:
        parts["codes"] = points.codes(parts.pop("low").long() | parts.pop("high").long() << 8, parts.pop("signs"))
    return parts


def put_together(name: str, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Blocks uint8 (count, bytes) of parts as ``taken_apart`` gives them."""
    found = []
    if (points := LAYOUTS[name].points) is not None:
        index, negative = points.index(parts["codes"])
        parts = {**parts, "low": (index & 255).to(torch.uint8), "high": (index >> 8).to(torch.uint8), "signs": negative.to(torch.uint8)}
    for field in LAYOUTS[name].fields:
        numbers = parts[field.part]
        if field.bits == 16:
            found.append(numbers.contiguous()[:, None].view(torch.uint8))
        else:
            found.append(_six_together(numbers) if field.bits == 6 else _gathered(numbers, field))
    return torch.cat(found, 1)


def grids(name: str, parts: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """What levels are multiplied by, and what is added then, float32 (count, groups of columns)."""
    layout = LAYOUTS[name]
    scale, offset = parts["step"].float()[:, None] * layout.unit, torch.zeros(1)
    if layout.least:
        offset = parts["least"].float()[:, None]
    if layout.scales:
        groups = TYPES[name].columns // layout.columns
        scale = scale * parts["sides"][:, :groups].float().sub_(layout.bias)
        if layout.least:
            offset = -(offset * parts["sides"][:, groups:].float())
    return scale, offset.expand_as(scale)


def values(name: str, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Float32 (count, columns) that parts stand for, multiplied in the order of llama.cpp's own reader: equal to the bit."""
    scale, offset = grids(name, parts)
    levels = LAYOUTS[name].levels(parts["codes"]).view(*scale.shape, -1).mul_(scale[..., None])
    return (levels.add_(offset[..., None]) if LAYOUTS[name].least else levels).flatten(1)


def _spread(raw: torch.Tensor, field: Field) -> torch.Tensor:
    """Numbers uint8 (count, bytes · 8 / bits) of one field."""
    if field.bits == 8:
        return raw ^ 128 if field.signed else raw
    shifts = torch.arange(0, 8, field.bits, dtype=torch.uint8)[:, None]
    numbers = (raw.reshape(len(raw), -1, 1, field.width) >> shifts) & (2**field.bits - 1)
    return numbers.flatten(1) << field.shift


def _gathered(numbers: torch.Tensor, field: Field) -> torch.Tensor:
    """Bytes (count, bytes) of one field."""
    if field.bits == 8:
        return numbers ^ 128 if field.signed else numbers
    per = 8 // field.bits
    own = ((numbers >> field.shift) & (2**field.bits - 1)).view(len(numbers), -1, per, field.width)
    found = own[:, :, 0].clone()
    for place in range(1, per):
        found |= own[:, :, place] << (place * field.bits)
    return found.flatten(1)


def _six_apart(raw: torch.Tensor) -> torch.Tensor:
    """Eight scales and eight minima of six bits: the first four of each lie whole, in bytes whose upper bits those of the last four share."""
    scales, minima, rest = raw.split(4, 1)
    later = (rest & 15) | (scales >> 6 << 4), (rest >> 4) | (minima >> 6 << 4)
    return torch.cat([scales & 63, later[0], minima & 63, later[1]], 1)


def _six_together(numbers: torch.Tensor) -> torch.Tensor:
    scales, later_scales, minima, later_minima = numbers.split(4, 1)
    upper = lambda own, later: own | (later >> 4 << 6)
    return torch.cat([upper(scales, later_scales), upper(minima, later_minima), (later_scales & 15) | (later_minima & 15) << 4], 1)


assert LAYOUTS.keys() == TYPES.keys()
