"""The entries of so many from the top over any number of pieces: bits are counted, nothing is sorted."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import numpy as np
import torch

from modicum.core.errors import ModelError

Pieces = Callable[[Callable[[torch.Tensor], np.ndarray]], Iterable[np.ndarray]]
"""Calls a function on the values (rows, entries) of every piece, and gives what it returned, piece by piece in their order."""

_DIGIT = 16  # bits that a pass tells apart


def largest(pieces: Pieces, rows: int, counts: tuple[int, ...], entries: int) -> torch.Tensor:
    """By row the values of these ``counts`` from the top (rows, counts), exactly.

    Each pass counts sixteen more bits of what can still be the answer, as whole numbers in the order of the floats: two passes over values in
    float32, four over float64.
    """
    wanted = [(row, place) for row in range(rows) for place, count in enumerate(counts) if count > 0]
    found = torch.full((rows, len(counts)), float("inf"), dtype=torch.float64)
    left = {key: min(counts[key[1]], entries) for key in wanted}  # how many from the top of what is left
    ranges = dict.fromkeys(wanted, (0, 0))  # bits that are known, and how many
    width = 0
    while wanted:
        asked = sorted({(row, ranges[row, place]) for row, place in wanted})
        totals: np.ndarray | None = None
        for counted in pieces(functools.partial(_count, asked=asked)):
            width = int(counted[0, -1])
            totals = counted if totals is None else totals + counted
        if totals is None:
            raise ModelError("merge: nothing is there to choose the largest of.")
        table = dict(zip(asked, totals[:, :-1]))
        for key in list(wanted):
            row, (known, bits) = key[0], ranges[key]
            above = np.cumsum(table[row, ranges[key]][::-1])
            digit = int(np.searchsorted(above, left[key]))
            left[key] -= int(above[digit - 1]) if digit else 0
            ranges[key] = ((known << _DIGIT) | ((1 << _DIGIT) - 1 - digit), bits + _DIGIT)
            if ranges[key][1] == width:
                found[key] = _value(ranges[key][0], width)
                wanted.remove(key)
    return found


def ordered(values: np.ndarray) -> np.ndarray:
    """Bits of floats as unsigned whole numbers in the floats' order."""
    size = values.dtype.itemsize * 8
    bits = np.ascontiguousarray(values).view(f"u{size // 8}")
    sign = bits >> (size - 1)
    top = np.array(1 << (size - 1), dtype=bits.dtype)
    return np.where(sign == 1, ~bits, bits | top) if bool(sign.any()) else bits | top


def _count(values: torch.Tensor, asked: list[tuple[int, tuple[int, int]]]) -> np.ndarray:
    """Of every (row, known bits) how many values have which next digit (asked, 65536), and last the width of a value in bits."""
    made = np.zeros((len(asked), (1 << _DIGIT) + 1), dtype=np.int64)
    whole = {row: ordered(values[row].numpy()) for row, _ in {(row, 0) for row, _ in asked}}
    for place, (row, (known, bits)) in enumerate(asked):
        mine = whole[row]
        size = mine.dtype.itemsize * 8
        if bits:
            mine = mine[(mine >> np.array(size - bits, dtype=mine.dtype)) == known]
        digits = (mine >> np.array(size - bits - _DIGIT, dtype=mine.dtype)) & np.array((1 << _DIGIT) - 1, dtype=mine.dtype)
        made[place, :-1] = np.bincount(digits.astype(np.int64), minlength=1 << _DIGIT)
        made[place, -1] = 0
    made[0, -1] = whole[asked[0][0]].dtype.itemsize * 8
    return made


def _value(number: int, width: int) -> float:
    top = 1 << (width - 1)
    bits = number ^ top if number & top else ~number & ((1 << width) - 1)
    kind, whole = (np.float32, np.uint32) if width == 32 else (np.float64, np.uint64)
    return float(np.array([bits], dtype=whole).view(kind)[0])
