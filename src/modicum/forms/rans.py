"""Range asymmetric numeral systems: whole numbers coded near their entropy, in many lanes, so that a step of all is one operation on arrays.

Each number is coded under one of a few tables, which are those of rounded Gaussians, a quarter of an octave apart in deviation; as many more are
those of a grid that is shifted by half a step (``trellis.py``). Frequencies are whole numbers, so every processor decodes alike. Lane ``j`` of ``n``
holds the numbers ``j``, ``j + n``, ``j + 2 n``, ...

*Source:* Duda, Asymmetric numeral systems, arXiv 1311.2540.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from modicum.forms.trellis import Following

# Bits of a frequency, and of the words in which states are written.
_BITS, _WORD = 12, 16
_ALL, _LOW = 1 << _BITS, 1 << _WORD
# Largest number in a table, tables in an octave of deviation, and the deviations of the first and the last in octaves.
TOP, STEPS = 127, 4
FIRST, LAST = -3, 5
TABLES = (LAST - FIRST) * STEPS + 1
# Slots between a table and that of its shifted grid.
APART = TABLES << _BITS
# Deviations from zero, and numbers beside, up to which a table has numbers that hardly ever come.
REACH, _BESIDE = 5.0, 1
# How far from zero numbers are zero on the shifted grid, where both neighbours are nearer than on the other.
_ZERO = 0.125
# Most steps before which no words are written.
FREE = 7
# Bytes for which a lane is worth its state, and most lanes.
_WORTH, _LANES = 256, 4096


@cache
def frequencies() -> np.ndarray:
    """How often of 4,096 times each number from -127 to 127 comes in each table: whole numbers (2 tables, 255), zero where never. The second half are
    those of the shifted grid.
    """
    found = np.zeros((2 * TABLES, 2 * TOP + 1), dtype=np.int64)
    for table in range(2 * TABLES):
        deviation = 2.0 ** (FIRST + table % TABLES / STEPS)
        reach = min(TOP, math.ceil(REACH * deviation) + _BESIDE)
        # One for each number, so that all can be said, and the rest by the Gaussian's distribution function.
        rest = _ALL - (2 * reach + 1)
        edge = _plain_edge if table < TABLES else _shifted_edge
        below = [round(rest * (1 + math.erf(edge(number) / deviation / math.sqrt(2))) / 2) for number in range(-reach + 1, reach + 1)]
        shares = [upper - lower + 1 for lower, upper in zip([0, *below], [*below, rest])]
        found[table, TOP - reach : TOP + reach + 1] = shares
    return found


def _plain_edge(number: int) -> float:
    """Where a number begins."""
    return number - 0.5


def _shifted_edge(number: int) -> float:
    """The same on the grid 0, ±1/2, ±3/2, ..."""
    return float(number - 1) if number > 1 else float(number) if number < 0 else _ZERO if number == 1 else -_ZERO


@cache
def costs() -> np.ndarray:
    """Bits that each number takes in each table, float32 (2 tables, 255); infinite where it never comes."""
    with np.errstate(divide="ignore"):
        return (_BITS - np.log2(frequencies())).astype(np.float32)


@cache
def reaches() -> np.ndarray:
    """The largest number that each table has (2 tables,)."""
    return (frequencies() > 0).sum(1) // 2


@cache
def _starts() -> np.ndarray:
    whole = frequencies()
    return (whole.cumsum(1) - whole).astype(np.uint32)


@cache
def _slots() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """For each table and each of 4,096 slots the frequency of the number found there and the slot's place in it, uint32, the number, int8, and
    whether that is odd, uint8.
    """
    whole, starts = frequencies(), _starts()
    shares, places, numbers = (np.empty((2 * TABLES, _ALL), dtype=kind) for kind in (np.uint32, np.uint32, np.int8))
    for table in range(2 * TABLES):
        found = np.repeat(np.arange(2 * TOP + 1), whole[table])
        shares[table], places[table], numbers[table] = whole[table, found], np.arange(_ALL) - starts[table, found], found - TOP
    return shares.reshape(-1), places.reshape(-1), numbers.reshape(-1), (numbers & 1).astype(np.uint8).reshape(-1)


def lanes(size: int) -> int:
    """Lanes of a stream of ``size`` bytes: a state of four bytes each must be worth it."""
    return max(1, min(_LANES, size // _WORTH))


def encode(numbers: np.ndarray, tables: np.ndarray, count: int) -> tuple[bytes, int]:
    """Code ``numbers`` (n,) int8, each within its table's reach, under ``tables`` (n,) uint8 in ``count`` lanes; and how many steps were free.

    A state would begin at its least size, of two bytes that say nothing. So it begins at a power of two from which the first numbers, in up to seven
    steps of all lanes before which no words are written, take it to that size.
    """
    places = numbers.astype(np.int64) + TOP
    often, starts = frequencies()[tables, places].astype(np.uint32), _starts()[tables, places]
    lows = range((len(numbers) - 1) // count * count, -1, -count)
    states, free = _begun([(often[low : low + count], starts[low : low + count]) for low in lows[:FREE]], count)
    words = []
    for low in lows[free:]:
        share, start = often[low : low + count], starts[low : low + count]
        own = states[: len(share)]
        full = own >= share << (2 * _WORD - _BITS)
        words.append((own[full] & (_LOW - 1)).astype("<u2"))
        states[: len(share)] = _with(np.where(full, own >> _WORD, own), share, start)
    return states.astype("<u4").tobytes() + b"".join(word.tobytes() for word in reversed(words)), free


def _with(states: np.ndarray, share: np.ndarray, start: np.ndarray) -> np.ndarray:
    """States after numbers of these shares of all slots, which start there."""
    turns, rest = np.divmod(states, share)
    return (turns << _BITS) + rest + start


def _begun(steps: list[tuple[np.ndarray, np.ndarray]], count: int) -> tuple[np.ndarray, int]:
    """States (count,) uint32 after as many of the first steps as no state is too large for, and their number."""
    powers = np.repeat(np.uint64(1) << np.arange(_WORD + 1, dtype=np.uint64)[:, None], count, 1)
    free = 0
    for share, start in steps:
        after = powers.copy()
        after[:, : len(share)] = _with(powers[:, : len(share)], share.astype(np.uint64), start.astype(np.uint64))
        if (after[0] >> np.uint64(2 * _WORD)).any():
            break
        powers, free = after, free + 1
    least = (powers >= _LOW).argmax(0)
    return np.take_along_axis(powers, least[None], 0)[0].astype(np.uint32), free


def decode(stream: np.ndarray, tables: np.ndarray, count: int, path: Following | None = None, free: int = 0) -> np.ndarray:
    """The numbers (n,) int8 of ``stream`` (bytes,) uint8, under the ``tables`` (n,) uint8 they were coded with, so many steps ``free``; what follows
    them is not read. Where they follow a ``path``, it says as they come which of those below are on the shifted grid.

    Raises ``ValueError`` for a stream that ends early, or whose lanes do not end where coding began.
    """
    if len(stream) < 4 * count:
        raise ValueError(f"{len(stream)} bytes hold no {count} lanes")
    states = stream[: 4 * count].copy().view("<u4").astype(np.uint32)
    words = stream[4 * count : len(stream) - len(stream) % 2].copy().view("<u2").astype(np.uint32)
    shares, places, numbers, odd = _slots()
    at, told, slots = 0, 0, np.empty(len(tables), dtype=np.intp)
    np.left_shift(tables, _BITS, out=slots, dtype=np.intp)
    # Each step is few operations on all lanes; what they give lies where it lay before.
    low, share, place = (np.empty(count, dtype=np.uint32) for _ in range(3))
    last = (-(-len(tables) // count) - free) * count
    for first in range(0, len(tables), count):
        if first + count > len(tables):
            low, share, place = (each[: len(tables) - first] for each in (low, share, place))
        own, here = states[: len(low)], slots[first : first + len(low)]
        if path is not None and first + len(low) > told + path.columns:  # what is above these has been met, much of it at a time
            path.met(told, odd.take(slots[told:first], mode="clip"), slots)
            told = first
        np.bitwise_and(own, _ALL - 1, out=low)
        here += low
        shares.take(here, out=share, mode="clip")
        places.take(here, out=place, mode="clip")
        own >>= _BITS
        own *= share
        own += place
        if first >= last:
            continue
        spent = (own < _LOW).nonzero()[0]
        given = words[at : at + len(spent)]
        if len(given) < len(spent):
            raise ValueError("the stream of codes ends early")
        left = own.take(spent)
        left <<= _WORD
        left |= given
        own[spent] = left
        at += len(spent)
    if (states != _LOW).any() if not free else (states & (states - np.uint32(1))).any() or (states - np.uint32(1) >= _LOW).any():
        raise ValueError("the stream of codes does not end where it began")
    return numbers.take(slots)
