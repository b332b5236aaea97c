"""Coded: whole numbers of any size under a step per column, entropy-coded into a stream of a size that was settled before."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from typing_extensions import override

from modicum.forms import rans
from modicum.forms.form import Form, expect
from modicum.forms.packing import pack, packed_bytes, unpack
from modicum.forms.trellis import STATES, Following, shifted

# Exponents of steps and deviations are told in quarters of an octave. Steps are the whole octaves and one and a half times those: exact in any
# float, so that whoever multiplies codes by a runtime's own means gets the same values. Files of an earlier version have the quarters themselves.
_LADDERS = {"halves": np.array([1.0, np.nan, 1.5, np.nan]), "quarters": np.array([1.0, 2**0.25, 2**0.5, 2**0.75])}
# The scale; the least exponent of a column, of a row's deviation and of a row's step, in how many bits each one's excess over it is told; lanes, and
# above so many bits the steps that were free.
_HEADS = {"halves": struct.Struct("<fhhhBBBH"), "quarters": struct.Struct("<fhhBBH")}
_LANE_BITS = 13
# Bytes of a stream beside its numbers: the head, and a state.
BESIDE = _HEADS["halves"].size + 4
# Significant bits of a scale: a product with a row's step is then a number of the weight's dtype.
_DIGITS = {torch.bfloat16: 8, torch.float16: 11}
_MOST_DIGITS = 15
# Largest excess.
WIDEST = 255
# Bits per weight of a stream: a file that says fewer would have a small stream stand for a matrix of any size.
_FEWEST, _MOST = 0.25, 64


def stream_bytes(shape: tuple[int, int], bits: float, ladder: str = "halves") -> int:
    """Bytes of a stream of ``bits`` for each weight of a (rows, columns) matrix."""
    return _HEADS[ladder].size + 4 + math.ceil(shape[0] * shape[1] * bits / 8)


class Coded(Form):
    """``codes · step`` with ``step = scale · 2^(columns / 4) · 2^(raised / 4)``, each code under the table of Gaussians number ``rows - columns``.

    Half an octave is taken as one and a half. With a ``trellis`` of eight states codes are on one of two grids, half a step apart
    (``trellis.py``), and lie row by row in the stream. *Shapes:* ``codes`` int8 (rows, columns), ``columns`` int16 (columns,), ``rows`` and
    ``raised`` int16 (rows,). On disk they are one stream of ``bits`` per weight, whatever the codes: a head, the exponents packed, the codes column
    by column, and zeros to its end. The dequantized value is computed in float32 and rounded once.
    """

    kind = "coded"

    def __init__(
        self, codes: torch.Tensor, scale: float, rows: torch.Tensor, columns: torch.Tensor, bits: float, dtype: torch.dtype,
        raised: torch.Tensor | None = None, ladder: str = "halves", trellis: int = 0,
    ):  # fmt: skip
        self.trellis = trellis
        self.codes, self.scale, self.rows, self.columns, self.bits, self.ladder = codes, scale, rows, columns, bits, ladder
        self.raised = torch.zeros_like(rows) if raised is None else raised
        self.shape, self.dtype = (codes.shape[0], codes.shape[1]), dtype

    @override
    @property
    def nbytes(self) -> int:
        return stream_bytes(self.shape, self.bits, self.ladder)

    @override
    @cached_property
    def outline(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        return {"stream": (torch.uint8, (self.nbytes,))}

    @override
    @property
    def values(self) -> int:
        return self.shape[0] * self.shape[1]

    @override
    def settings(self) -> dict[str, Any]:
        told = {"steps": self.ladder} if self.ladder != "quarters" else {}
        return {"bits": self.bits} | told | ({"trellis": self.trellis} if self.trellis else {})

    @cached_property
    def _shifted(self) -> torch.Tensor:
        """Which codes are on the shifted grid."""
        return torch.from_numpy(shifted(self.codes.numpy()))

    @property
    def halves(self) -> torch.Tensor:
        """Twice what multiplies the steps, whole numbers int16 (rows, columns)."""
        twice = self.codes.short() * 2
        return twice.sub_(self.codes.sign() * self._shifted) if self.trellis else twice

    @override
    def dense(self) -> torch.Tensor:
        most = min(torch.finfo(self.dtype).max, torch.finfo(torch.float32).max)
        across, down = steps(self.columns, self.scale, self.ladder), steps(self.raised, 1.0, self.ladder)
        numbers = self.halves.float().mul_(0.5) if self.trellis else self.codes.float()
        return (numbers * (down[:, None] * across)).clamp_(-most, most).to(self.dtype)

    @override
    def zeroed(self, where: torch.Tensor) -> Form:
        if self.trellis:
            return super().zeroed(where)  # codes after one would be on the other grid
        # No number takes fewer bits than zero: there is room for it.
        codes = self.codes.masked_fill(where, 0)
        return Coded(codes, self.scale, self.rows, self.columns, self.bits, self.dtype, self.raised, self.ladder)

    @override
    def finite(self) -> bool:
        return math.isfinite(self.scale) and super().finite()

    @override
    def tensors(self) -> dict[str, torch.Tensor]:
        return {"stream": self._stream}

    @cached_property
    def _stream(self) -> torch.Tensor:
        body = self.body(self.nbytes)
        if len(body) > self.nbytes:
            raise ValueError(f"{len(body)} bytes of codes do not go into a stream of {self.nbytes}")
        return torch.frombuffer(bytearray(body.ljust(self.nbytes, b"\0")), dtype=torch.uint8)

    def body(self, room: int) -> bytes:
        """Head, exponents and codes, in as many lanes as a stream of ``room`` bytes has."""
        told = [_told(self.columns, 2), _told(self.rows), _told(self.raised, 2)]
        if self.ladder == "quarters":
            told = [_told(self.columns), _told(self.rows)]
        count = min(rans.lanes(room), self.shape[1]) if self.trellis else rans.lanes(room)
        numbers, each = self.codes.T, tables(self.rows, self.columns)
        if self.trellis:
            numbers, each = self.codes, each.T + rans.TABLES * self._shifted.numpy()
        codes, free = rans.encode(numbers.reshape(-1).numpy(), each.reshape(-1), count)
        lanes = count + (free << _LANE_BITS)
        head = _HEADS[self.ladder].pack(self.scale, *(least for least, _, _ in told), *(width for _, width, _ in told), lanes)
        return b"".join([head, *(packed.numpy().tobytes() for _, _, packed in told), codes])

    @override
    @classmethod
    def restored(cls, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any], shape: tuple[int, int], dtype: torch.dtype) -> Form:
        bits = float(settings["bits"])
        if not _FEWEST <= bits <= _MOST:
            raise ValueError(f"{bits} bits per weight are not from {_FEWEST} to {_MOST}")
        ladder = str(settings.get("steps", "quarters"))
        if ladder not in _LADDERS:
            raise ValueError(f"steps of {ladder!r} are not known")
        if (trellis := settings.get("trellis", 0)) not in (0, STATES):
            raise ValueError(f"a trellis has {STATES} states, not {trellis!r}")
        stream = expect(tensors["stream"], (stream_bytes(shape, bits, ladder),), torch.uint8).contiguous()
        head, new = _HEADS[ladder], ladder != "quarters"
        scale, *told, lanes = head.unpack(stream[: head.size].numpy().tobytes())
        many, sides, at = len(told) // 2, [], head.size
        for least, width, length, unit in zip(told[:many], told[many:], (shape[1], shape[0], shape[0]), (1 + new, 1, 2)):
            taken = packed_bytes((1, length), width) if width else 0
            if unit == 2 and least % 2:
                raise ValueError(f"steps begin at {least} quarters of an octave")
            excess = unpack(stream[None, at : at + taken], width, length)[0] if width else torch.zeros(length)
            sides.append(excess.to(torch.int16) * unit + least)
            at += taken
        free, count = divmod(lanes, 1 << _LANE_BITS)
        if count < 1:
            raise ValueError("a stream has no lanes")
        columns, rows, raised = sides if new else (*sides, None)
        each = tables(rows, columns)
        if trellis:
            if count > shape[1]:
                raise ValueError(f"{count} lanes are more than {shape[1]} columns")
            path = Following(shape[0] * shape[1], shape[1], rans.APART)
            codes = torch.from_numpy(rans.decode(stream[at:].numpy(), each.T.reshape(-1), count, path, free)).view(shape)
        else:
            numbers = rans.decode(stream[at:].numpy(), each.reshape(-1), count, free=free)
            codes = torch.from_numpy(numbers).view(shape[1], shape[0]).T.contiguous()
        form = cls(codes, scale, rows, columns, bits, dtype, raised, ladder, int(trellis))
        form.__dict__["_stream"] = stream
        return form


def steps(exponents: torch.Tensor, scale: float, ladder: str = "halves") -> torch.Tensor:
    """Steps float32 of these exponents: the same on every processor."""
    quarters = exponents.numpy().astype(np.int64)
    return torch.from_numpy((np.ldexp(_LADDERS[ladder][quarters % 4], quarters // 4) * scale).astype(np.float32))


def on_ladder(octaves: torch.Tensor) -> torch.Tensor:
    """Exponents, in quarters, of the steps that are nearest to 2 to these powers, int16."""
    whole = octaves.floor()
    rest, half = octaves - whole, math.log2(1.5)
    return (4 * whole + 2 * ((rest >= half / 2).int() + (rest >= (1 + half) / 2).int())).to(torch.int16)


def exact_scale(scale: float, dtype: torch.dtype, raised: torch.Tensor) -> float:
    """The nearest scale whose products with these steps of rows are exact in the dtype."""
    share, exponent = math.frexp(scale)
    digits = _DIGITS.get(dtype, _MOST_DIGITS)
    number, every = round(math.ldexp(share, digits)), 1
    if bool((raised % 4 == 2).any()):  # one and a half times it has as many digits too
        every = 2 if 3 * number < 2 ** (digits + 1) else 4
    return math.ldexp(round(number / every) * every, exponent - digits)


def tables(rows: torch.Tensor, columns: torch.Tensor) -> np.ndarray:
    """The table of each code, uint8 (columns, rows): as codes lie in the stream."""
    return (rows.numpy()[None].astype(np.int32) - columns.numpy()[:, None]).clip(0, rans.TABLES - 1).astype(np.uint8)


def side_bytes(columns: torch.Tensor, rows: torch.Tensor, raised: torch.Tensor) -> int:
    """Bytes of packed exponents."""
    return sum(_told(each, unit)[2].numel() for each, unit in ((columns, 2), (rows, 1), (raised, 2)))


def _told(exponents: torch.Tensor, unit: int = 1) -> tuple[int, int, torch.Tensor]:
    """The least of exponents, the bits of an excess over it in units, and the excesses packed."""
    least = int(exponents.min())
    excess = ((exponents - least) // unit).to(torch.uint8)[None]
    width = int(excess.max()).bit_length()
    return least, width, pack(excess, width)[0] if width else torch.empty(0, dtype=torch.uint8)
