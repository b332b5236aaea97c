"""The best path of codes through the trellis of ``forms/trellis.py``, for all rows of a column at once.

Three codes lead from any of the eight states to any other in exactly one way, so what they cost is an 8 × 8 matrix; what two spans of a column cost
one after the other is the product of theirs in which sums are minima and products sums. Products of pairs, of pairs of pairs and so on take as
many steps as the number of rows has digits, each an operation on arrays, where walking down the column would take one for each row.
"""

from __future__ import annotations

import itertools

import numpy as np

from modicum.forms import rans
from modicum.forms.trellis import SEGMENT, STATES, after

# What a bit is worth, in squared steps: near the slope of the error over the rate where steps settle.
PRICE = 0.07
# Codes between any two states, and no way.
_SPAN, _NEVER = 3, np.float32(1e30)
# The largest code of which six times it is a whole number of eight bits.
TOP_OF_THIRDS = 21


def _paths() -> tuple[np.ndarray, np.ndarray]:
    """For each first and last state: which of the four kinds of codes (grid, odd) a span takes, (span, 64)."""
    kinds = np.zeros((_SPAN, STATES, STATES), dtype=np.int64)
    for first, odds in itertools.product(range(STATES), itertools.product((0, 1), repeat=_SPAN)):
        state, met = np.array([first], dtype=np.uint8), []
        for odd in odds:
            met.append(2 * int(state[0] & 1) + odd)
            state = after(state, np.array([odd], dtype=np.uint8))
        kinds[:, first, int(state[0])] = met
    return kinds.reshape(_SPAN, -1), kinds


_KINDS, _BY_STATES = _paths()


def best(corrected: np.ndarray, tables: np.ndarray, most: int, wider: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Codes int8 (rows,), and what they stand for in steps, float32 (rows,), near ``corrected`` float32 (rows,), in steps, each under its own of the
    ``tables`` (rows,): those of least squared error plus price of bits along the path, that begins at zero after each segment. No code is beyond
    ``most``, or beyond its table; bits are those of tables so many ``wider``.

    Rows may be (lanes, rows), each lane a path of its own.
    """
    lanes, rows = corrected.reshape(-1, corrected.shape[-1]).shape
    parts, whole = [], rows // SEGMENT * SEGMENT
    for span, length in ((slice(0, whole), SEGMENT), (slice(whole, rows), rows - whole)):
        if length and span.stop > span.start:
            near, own = (each.reshape(lanes, rows)[:, span].reshape(-1, length) for each in (corrected, tables))
            parts.append([each.reshape(lanes, -1) for each in _segments(near, own, most, wider)])
    codes, values = (np.concatenate(each, 1).reshape(corrected.shape) for each in zip(*parts))
    return codes, values


def _segments(corrected: np.ndarray, tables: np.ndarray, most: int, wider: int) -> tuple[np.ndarray, np.ndarray]:
    lanes, rows = corrected.shape
    size = np.abs(np.nan_to_num(corrected))  # what is not finite is told where a form is looked at
    reach, priced = np.minimum(rans.reaches()[tables], most), np.minimum(tables + wider, rans.TABLES - 1)
    codes, values = np.empty((2, 4, lanes, rows), dtype=np.float32)
    costs = np.zeros((4, lanes, -(-rows // _SPAN) * _SPAN), dtype=np.float32)
    bits = rans.costs().reshape(-1)
    for kind in range(4):
        grid, odd = divmod(kind, 2)
        near = np.round((size + (0.5 * grid - odd)) / 2) * 2 + odd
        code = np.clip(near, odd, reach - ((reach ^ odd) & 1))
        if grid and not odd:
            code[(code == 2) & (size < 0.75)] = 0
        value = code - 0.5 * (code > 0) if grid else code
        places = (priced + grid * rans.TABLES) * (2 * rans.TOP + 1) + rans.TOP + code.astype(np.int64)
        costs[kind, :, :rows] = (size - value) ** 2 + np.float32(PRICE) * bits.take(places)
        codes[kind], values[kind] = code, value
    kinds = _walked(costs)[None, :, :rows]
    code, value = (np.copysign(np.take_along_axis(each, kinds, 0)[0], corrected) for each in (codes, values))
    return code.astype(np.int8), value


def _walked(costs: np.ndarray) -> np.ndarray:
    """The kinds (lanes, rows) of the cheapest path, for costs (4, lanes, rows) of each kind; rows are whole spans."""
    lanes = costs.shape[1]
    spans = costs.reshape(4, lanes, -1, _SPAN)
    level = spans[_KINDS, :, :, np.arange(_SPAN)[:, None]].sum(0).reshape(STATES, STATES, lanes, -1)
    levels = []
    while level.shape[3] > 1:
        if level.shape[3] % 2:
            level = np.concatenate([level, _nothing(lanes)], 3)
        levels.append(level)
        left, right = level[..., 0::2], level[..., 1::2]
        level = (left.swapaxes(0, 1)[:, :, None] + right[:, None]).min(0)
    first = np.zeros((lanes, 1), dtype=np.int64)
    last = level[0, :, :, 0].argmin(0)[:, None]
    every = np.arange(lanes)[:, None]
    for level in reversed(levels):
        nodes = np.arange(level.shape[3] // 2)
        first, last = first[:, : len(nodes)], last[:, : len(nodes)]
        between = (level[first, :, every, 2 * nodes] + level[:, last, every, 2 * nodes + 1].transpose(1, 2, 0)).argmin(2)
        first, last = _joined(first, between), _joined(between, last)
    many = spans.shape[2]
    return _BY_STATES[:, first[:, :many], last[:, :many]].transpose(1, 2, 0).reshape(lanes, -1)


def _nothing(lanes: int) -> np.ndarray:
    """A span of no codes: from each state to itself."""
    still = np.full((STATES, STATES), _NEVER, dtype=np.float32)
    np.fill_diagonal(still, 0)
    return np.broadcast_to(still[:, :, None, None], (STATES, STATES, lanes, 1))


def _joined(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    both = np.empty((len(left), 2 * left.shape[1]), dtype=left.dtype)
    both[:, 0::2], both[:, 1::2] = left, right
    return both
