"""What one kind of quantized checkpoint must say of itself, and what several kinds share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from modicum.core.tensorformat import Entry
from modicum.forms.packing import unpack

# What the sixteen codes of a 4-bit float stand for.
_FLOAT4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
_NIBBLES = torch.cat([_FLOAT4, -_FLOAT4])
Stored = Mapping[str, Entry]
Read = Callable[[str], torch.Tensor]
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
FLOATS8 = (torch.float8_e4m3fn, torch.float8_e5m2)


@dataclass(frozen=True)
class Quantized:
    """One weight as it is stored: its shape once it is dense, what it is rounded to in words, and how its parts make it, in float32."""

    shape: tuple[int, ...]
    kind: str
    decode: Callable[[Mapping[str, torch.Tensor]], torch.Tensor]


class Format(ABC):
    """How one kind of checkpoint stores weights, as far as ``said``, its part of the config, tells; what tensors tell themselves is not asked.

    A weight is called ``MODULE.weight``, and its ``parts`` are tensors with other endings of that name. Raises ``ValueError`` for another layout.
    """

    name: ClassVar[str]
    parts: ClassVar[tuple[str, ...]]

    def __init__(self, said: Mapping[str, Any]):
        self.said = said

    def owner(self, key: str, names: Collection[str]) -> tuple[str, str] | None:
        """The weight that a stored tensor belongs to, and which part of it that is; None for what is stored as it is."""
        module, _, part = key.rpartition(".")
        return (f"{module}.weight", part) if part in self.parts else None

    @abstractmethod
    def weight(self, stored: Stored, read: Read) -> Quantized | None:
        """The weight of these parts; None where it is stored as it is. ``read`` is for what is small. Raises ``ValueError``."""


def require(stored: Stored, part: str, dtypes: Iterable[torch.dtype], axes: int = 2) -> tuple[int, ...]:
    """The shape of a part. Raises ``ValueError`` where it is not there, of another dtype, of other axes or empty."""
    if part not in stored:
        raise ValueError(f"{part} is missing")
    entry = stored[part]
    if entry.dtype not in tuple(dtypes) or (axes and len(entry.shape) != axes) or not math.prod(entry.shape):
        raise ValueError(f"{part} is {str(entry.dtype)[6:]} {list(entry.shape)}")
    return entry.shape


def codes(words: torch.Tensor, bits: int, columns: int, planes: bool = False) -> torch.Tensor:
    """Codes uint8 (rows, columns) that rows of int32 words hold, lowest bit first, without a gap.

    In ``planes`` every 32 codes are so many words as a code has bits: their lowest bits (four, or two of three) come first, then the rest of
    them in fields of at most two.
    """
    if not planes:
        return unpack(_bytes(words)[:, : math.ceil(columns * bits / 8)], bits, columns)
    lots = words.reshape(-1, bits)
    found = torch.zeros(len(lots), 32, dtype=torch.uint8)
    done = 0
    while done < bits:
        width = next(width for width in (8, 4, 2, 1) if width <= bits - done)
        found |= unpack(_bytes(lots[:, done : done + width]), width, 32) << done
        done += width
    return found.reshape(len(words), -1)[:, :columns]


def _bytes(words: torch.Tensor) -> torch.Tensor:
    return words.contiguous().view(torch.uint8)


def nibbles(packed: torch.Tensor) -> torch.Tensor:
    """What the 4-bit floats (..., 2 · bytes) of uint8 (..., bytes) stand for, that of a byte's lower half first."""
    return _NIBBLES[torch.stack([packed & 15, packed >> 4], -1).flatten(-2).int()]


def exponents(stored: torch.Tensor) -> torch.Tensor:
    """Powers of two that are stored as an exponent in a byte."""
    return (stored.float() - 127).exp2()


def block(shape: tuple[int, ...], scales: tuple[int, ...], sizes: Iterable[tuple[int, int]] = ()) -> tuple[int, int]:
    """Rows and columns of a weight (..., rows, columns) that share one of ``scales`` (as many axes; one a row; one); of ``sizes`` what fits.

    Raises ``ValueError`` where they cannot be dealt out evenly.
    """
    wanted = grid(shape, scales)
    for size in sizes:
        if tuple(math.ceil(length / part) for length, part in zip(shape[-2:], size)) == wanted:
            return size
    if any(not count or length % count for length, count in zip(shape[-2:], wanted)):
        raise ValueError(f"scales {list(scales)} of a weight {list(shape)}")
    height, width = (length // count for length, count in zip(shape[-2:], wanted))
    return height, width


def grid(shape: tuple[int, ...], scales: tuple[int, ...]) -> tuple[int, int]:
    """How many scales there are along the rows and the columns of a weight. Raises ``ValueError`` where axes before do not agree."""
    if math.prod(scales) == 1:
        return 1, 1
    if len(scales) == 1:
        scales = (*scales, 1)
    if len(scales) != len(shape) or scales[:-2] != shape[:-2]:
        raise ValueError(f"scales {list(scales)} of a weight {list(shape)}")
    return scales[-2], scales[-1]


def spread(scales: torch.Tensor, shape: tuple[int, ...], size: tuple[int, int]) -> torch.Tensor:
    """Scales in float32, one for each weight of ``shape``, each standing for ``size`` rows and columns."""
    rows, columns = grid(shape, tuple(scales.shape))
    whole = scales.float().reshape(*shape[:-2], rows, columns)
    whole = whole.repeat_interleave(size[0], -2)[..., : shape[-2], :]
    return whole.repeat_interleave(size[1], -1)[..., : shape[-1]]


def shared(shape: tuple[int, ...], size: tuple[int, int]) -> str:
    """In words, which weights share a scale."""
    height, width = size
    if height == 1:
        return "a scale per row" if width >= shape[-1] else f"in groups of {width}"
    return "one scale" if height >= shape[-2] and width >= shape[-1] else f"in blocks of {height} x {width}"
