"""The entries of so many from the top over any number of pieces: a sample says between which values each lies, one pass counts what is there."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from modicum.core.errors import ModelError

_SURE = 4.5  # standard errors of the sample's answer at which the true one is looked for
_HELD = 1 << 20  # entries that are held at a time
_AT_ONCE = 1 << 16  # entries that are counted at a time
_BINS = 1 << 16  # ranges that are counted where more lie between


class Pieces(Protocol):
    """Calls a function on the values (rows, entries) of every piece, or of every so many entries of it, and gives what it returned, in order."""

    def __call__(self, function: Callable[[np.ndarray], Any], stride: int = 1) -> Iterable[Any]:
        """Of each piece."""


@dataclass
class _Sought:
    """The entry at a ``place`` from the top of a row, which lies from ``low`` to ``high``."""

    row: int
    place: int
    low: float = -math.inf
    high: float = math.inf


def largest(pieces: Pieces, counts: tuple[int, ...], entries: int) -> torch.Tensor:
    """By row the values of these ``counts`` from the top (rows, counts) float64, exactly; infinity for a count of 0.

    A sample tells between which two values each lies. One pass over all entries counts those above and takes out those between, among which it is
    found. Where the sample was misled that pass says on which side it lies, and where too many to be held lie between, they are counted by ranges:
    then another pass follows.
    """
    stride = max(1, int((entries / 4) ** (1 / 3))) if entries > 1 << 16 else 1
    sample = list(pieces(np.array, stride))
    if not sample:
        raise ModelError("merge: nothing is there to choose the largest of.")
    found = np.full((sample[0].shape[0], len(counts)), math.inf)
    sought = {
        (row, place): _Sought(row, min(count, entries)) for row in range(len(found)) for place, count in enumerate(counts) if count > 0
    }
    if stride == 1:
        whole = np.concatenate(sample, axis=1)
        for (row, place), each in sought.items():
            found[row, place] = _top(whole[row], each.place)
        return torch.from_numpy(found)
    for each in sought.values():
        each.low, each.high = _between([values[each.row] for values in sample], each.place / entries)
    del sample
    while sought:
        asked = [(each.row, each.low, each.high) for each in sought.values()]
        inside = [_Inside(low, high) for _, low, high in asked]
        for counted in pieces(functools.partial(_each, asked=asked)):
            for mine, (above, between) in zip(inside, counted):
                mine.add(above, between)
        for (key, each), mine in zip(list(sought.items()), inside):
            each.low, each.high = mine.narrower(each.place)
            if each.low == each.high:
                found[key] = each.low
                del sought[key]
    return torch.from_numpy(found)


def _top(values: np.ndarray, place: int) -> float:
    return float(np.partition(values, len(values) - place)[len(values) - place])


def _between(sample: Sequence[np.ndarray], share: float) -> tuple[float, float]:
    """Between which values the entry lies below which all but a ``share`` are, as far as pieces of a sample tell, which may differ among them."""
    whole = np.sort(np.concatenate(sample))
    count = len(whole)
    middle = whole[min(count - 1, max(0, count - round(share * count)))]
    apart = [
        max(np.count_nonzero(piece > middle) - share * len(piece), share * len(piece) - np.count_nonzero(piece >= middle), 0)
        for piece in sample
    ]
    uneven = math.sqrt(sum(each**2 for each in apart))
    far = 2 + _SURE * max(uneven, math.sqrt(count * share * (1 - share)))
    low, high = math.floor(count - share * count - far), math.ceil(count - share * count + far)
    return float(whole[low]) if low >= 0 else -math.inf, float(whole[high]) if high < count else math.inf


def _each(values: np.ndarray, asked: Sequence[tuple[int, float, float]]) -> list[tuple[int, np.ndarray]]:
    return [_counted(values[row], low, high) for row, low, high in asked]


def _counted(values: np.ndarray, low: float, high: float) -> tuple[int, np.ndarray]:
    """How many values are above, and those between."""
    above, least = values > high, values >= low
    return int(np.count_nonzero(above)), values[np.flatnonzero(np.logical_xor(least, above, out=least))]


@dataclass
class _Inside:
    """Values of all pieces from ``low`` to ``high``: held as long as they are few, else counted by ranges of their bits."""

    low: float
    high: float
    above: int = 0
    total: int = 0
    _held: np.ndarray | None = None
    _waiting: int = 0
    _ranges: _Ranges | None = None

    def add(self, above: int, between: np.ndarray) -> None:
        """Take in what one piece has; it is copied, since many small arrays among larger ones would keep memory from being used again."""
        self.above += above
        self.total += len(between)
        if self._waiting + len(between) > _HELD:
            self._count(between)
        else:
            if self._held is None:
                self._held = np.empty(_HELD, between.dtype)
            self._held[self._waiting : self._waiting + len(between)] = between
            self._waiting += len(between)

    def _values(self) -> np.ndarray:
        return self._held[: self._waiting] if self._held is not None else np.empty(0)

    def _count(self, more: np.ndarray | None = None) -> None:
        for values in (self._values(), more):
            if values is not None and len(values):
                if self._ranges is None:
                    self._ranges = _Ranges.of(self.low, self.high, values.dtype)
                self._ranges.count(values)
        self._waiting = 0

    def narrower(self, place: int) -> tuple[float, float]:
        """Between which values the entry at a ``place`` from the top of all lies; one value where it is found."""
        if place <= self.above:
            return self.high, math.inf
        if place > self.above + self.total:
            return -math.inf, self.low
        if self._ranges is None:
            return (_top(self._values(), place - self.above),) * 2
        self._count()
        low, high = self._ranges.at(place - self.above)
        return max(low, self.low), min(high, self.high)


@dataclass
class _Ranges:
    """How many values there are by ranges of ``1 << shift`` patterns of bits from ``first`` on."""

    first: int
    shift: int
    dtype: np.dtype[Any]
    bins: np.ndarray

    @classmethod
    def of(cls, low: float, high: float, dtype: np.dtype[Any]) -> _Ranges:
        """Equally wide ranges between two values."""
        first, last = (int(ordered(np.array([end], dtype=dtype))[0]) for end in (low, high))
        shift = max(0, (last - first).bit_length() - _BINS.bit_length() + 1)
        return cls(first, shift, dtype, np.zeros((last - first >> shift) + 1, dtype=np.int64))

    def count(self, values: np.ndarray) -> None:
        """Take in values."""
        for start in range(0, len(values), _AT_ONCE):
            bits = ordered(values[start : start + _AT_ONCE])
            bits -= bits.dtype.type(self.first)
            bits >>= bits.dtype.type(self.shift)
            self.bins += np.bincount(bits.astype(np.int64), minlength=len(self.bins))

    def at(self, place: int) -> tuple[float, float]:
        """The ends of the range in which the value at a ``place`` from the top lies."""
        left = int(np.searchsorted(np.cumsum(self.bins[::-1]), place))
        bits = self.first + (len(self.bins) - 1 - left << self.shift)
        return _value(bits, self.dtype), _value(bits + (1 << self.shift) - 1, self.dtype)


def ordered(values: np.ndarray) -> np.ndarray:
    """Bits of floats as unsigned whole numbers in the floats' order; zeros of both signs are one."""
    size = values.dtype.itemsize * 8
    bits = (values + values.dtype.type(0)).view(f"u{size // 8}")
    top = bits.dtype.type(1 << (size - 1))
    return np.where(bits & top, ~bits, bits | top)


def _value(bits: int, dtype: np.dtype[Any]) -> float:
    size = dtype.itemsize * 8
    top = 1 << (size - 1)
    raw = bits ^ top if bits & top else ~bits & ((1 << size) - 1)
    found = float(np.array([raw], dtype=f"u{dtype.itemsize}").view(dtype)[0])
    return found if not math.isnan(found) else math.inf
