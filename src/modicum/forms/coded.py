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

# Steps of columns and deviations of rows are told in quarters of an octave.
_QUARTERS = np.array([1.0, 2**0.25, 2**0.5, 2**0.75])
# The scale; the least exponent of a column and of a row, and in how many bits each one's excess over it is told; the lanes.
_HEAD = struct.Struct("<fhhBBH")
# Bytes of a stream beside its numbers: the head, and a state.
BESIDE = _HEAD.size + 4
# Largest excess.
WIDEST = 255
# Bits per weight of a stream: a file that says fewer would have a small stream stand for a matrix of any size.
_FEWEST, _MOST = 0.25, 64


def stream_bytes(shape: tuple[int, int], bits: float) -> int:
    """Bytes of a stream of ``bits`` for each weight of a (rows, columns) matrix."""
    return BESIDE + math.ceil(shape[0] * shape[1] * bits / 8)


class Coded(Form):
    """``codes · step`` with ``step = scale · 2^(columns / 4)``, each code under the table of Gaussians number ``rows - columns``.

    *Shapes:* ``codes`` int8 (rows, columns), ``columns`` int16 (columns,), ``rows`` int16 (rows,). On disk they are one stream of
    ``bits`` per weight, whatever the codes: a head, the exponents packed, the codes column by column, and zeros to its end. The dequantized value is
    computed in float32 and rounded once.
    """

    kind = "coded"

    def __init__(self, codes: torch.Tensor, scale: float, rows: torch.Tensor, columns: torch.Tensor, bits: float, dtype: torch.dtype):
        self.codes, self.scale, self.rows, self.columns, self.bits = codes, scale, rows, columns, bits
        self.shape, self.dtype = (codes.shape[0], codes.shape[1]), dtype

    @override
    @property
    def nbytes(self) -> int:
        return stream_bytes(self.shape, self.bits)

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
        return {"bits": self.bits}

    @override
    def dense(self) -> torch.Tensor:
        most = min(torch.finfo(self.dtype).max, torch.finfo(torch.float32).max)
        return (self.codes.float() * steps(self.columns, self.scale)).clamp_(-most, most).to(self.dtype)

    @override
    def zeroed(self, where: torch.Tensor) -> Form:
        # No number takes fewer bits than zero: there is room for it.
        return Coded(self.codes.masked_fill(where, 0), self.scale, self.rows, self.columns, self.bits, self.dtype)

    @override
    def finite(self) -> bool:
        return math.isfinite(self.scale) and super().finite()

    @override
    def tensors(self) -> dict[str, torch.Tensor]:
        return {"stream": self._stream}

    @cached_property
    def _stream(self) -> torch.Tensor:
        sides = [_told(self.columns), _told(self.rows)]
        count = rans.lanes(self.nbytes)
        head = _HEAD.pack(self.scale, sides[0][0], sides[1][0], sides[0][1], sides[1][1], count)
        codes = rans.encode(self.codes.T.reshape(-1).numpy(), tables(self.rows, self.columns).reshape(-1), count)
        body = b"".join([head, *(packed.numpy().tobytes() for _, _, packed in sides), codes])
        if len(body) > self.nbytes:
            raise ValueError(f"{len(body)} bytes of codes do not go into a stream of {self.nbytes}")
        return torch.frombuffer(bytearray(body.ljust(self.nbytes, b"\0")), dtype=torch.uint8)

    @override
    @classmethod
    def restored(cls, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any], shape: tuple[int, int], dtype: torch.dtype) -> Form:
        bits = float(settings["bits"])
        if not _FEWEST <= bits <= _MOST:
            raise ValueError(f"{bits} bits per weight are not from {_FEWEST} to {_MOST}")
        stream = expect(tensors["stream"], (stream_bytes(shape, bits),), torch.uint8).contiguous()
        scale, column, row, per_column, per_row, count = _HEAD.unpack(stream[: _HEAD.size].numpy().tobytes())
        at, sides = _HEAD.size, []
        for least, width, length in ((column, per_column, shape[1]), (row, per_row, shape[0])):
            taken = packed_bytes((1, length), width) if width else 0
            excess = (
                unpack(stream[None, at : at + taken], width, length)[0].to(torch.int16) if width else torch.zeros(length, dtype=torch.int16)
            )
            sides.append(excess + least)
            at += taken
        if count < 1:
            raise ValueError("a stream has no lanes")
        numbers = rans.decode(stream[at:].numpy(), tables(sides[1], sides[0]).reshape(-1), count)
        form = cls(torch.from_numpy(numbers).view(shape[1], shape[0]).T.contiguous(), scale, sides[1], sides[0], bits, dtype)
        form.__dict__["_stream"] = stream
        return form


def steps(columns: torch.Tensor, scale: float) -> torch.Tensor:
    """Steps (columns,) float32 of columns with these exponents: the same on every processor."""
    exponents = columns.numpy().astype(np.int64)
    return torch.from_numpy((np.ldexp(_QUARTERS[exponents % 4], exponents // 4) * scale).astype(np.float32))


def tables(rows: torch.Tensor, columns: torch.Tensor) -> np.ndarray:
    """The table of each code, uint8 (columns, rows): as codes lie in the stream."""
    return (rows.numpy()[None].astype(np.int32) - columns.numpy()[:, None]).clip(0, rans.TABLES - 1).astype(np.uint8)


def side_bytes(*exponents: torch.Tensor) -> int:
    """Bytes of packed exponents."""
    return sum(_told(each)[2].numel() for each in exponents)


def _told(exponents: torch.Tensor) -> tuple[int, int, torch.Tensor]:
    """The least of exponents, the bits of an excess over it, and the excesses packed."""
    least, most = int(exponents.min()), int(exponents.max())
    width = (most - least).bit_length()
    excess = (exponents - least).to(torch.uint8)[None]
    return least, width, pack(excess, width)[0] if width else torch.empty(0, dtype=torch.uint8)
