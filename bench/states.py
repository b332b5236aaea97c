"""What more states of the trellis would be worth: Gaussian numbers coded along the best path, beyond the rate–distortion bound.

`python -m bench.states`. Of the feedbacks of a number of states that were tried the best stands here. Paths are walked code by code; a decoder's step
is one look-up in a table of two entries a state, however many there are.
"""

from __future__ import annotations

import math

import numpy as np

from bench.common import show
from modicum.forms.rans import _plain_edge, _shifted_edge
from modicum.numerics.trellis import PRICE

ROWS, LANES, TOP, TURNS = 400, 160, 200, 3
FEEDBACK = {8: 5, 16: 13, 32: 26, 64: 53}
STEPS = (2.0, 1.0)


def main() -> None:
    x = np.random.default_rng(0).standard_normal((ROWS, LANES))
    found = {states: [gap(x, states, feedback, step) for step in STEPS] for states, feedback in FEEDBACK.items()}
    pair = lambda each: [f"{bits:.2f}: {beyond:.3f}" for bits, beyond in each]
    rows = [("one grid", *pair([plain(x, step / 2) for step in STEPS]), "")]
    rows += [(f"{states} states", *pair(each), f"{states**3 / math.log2(states) / (8**3 / 3):.0f}") for states, each in found.items()]
    show(
        "States: bits of Gaussian numbers, and of them beyond the bound",
        ("code", "a coarse step", "a finer one", "sums of an encoder's products of matrices, of those of eight states"),
        rows,
        f"{ROWS * LANES} numbers, entropies of what came. `python -m bench.states`.",
    )


def plain(x: np.ndarray, step: float) -> tuple[float, float]:
    """Entropy of rounding, and how far beyond the bound it is."""
    codes = np.round(x / step)
    share = np.unique(codes, return_counts=True)[1] / x.size
    entropy = -float((share * np.log2(share)).sum())
    return entropy, beyond(x, entropy, codes * step)


def beyond(x: np.ndarray, bits: float, values: np.ndarray) -> float:
    return bits - 0.5 * math.log2(float(np.var(x)) / float(((x - values) ** 2).mean()))


def gap(x: np.ndarray, states: int, feedback: int, step: float) -> tuple[float, float]:
    """The same of codes on the best path, under prices that follow from how often codes come."""
    size = np.abs(x / step)
    codes, values = np.empty((4, *x.shape)), np.empty((4, *x.shape))
    for kind in range(4):
        grid, odd = divmod(kind, 2)
        code = np.maximum(np.round((size + (0.5 * grid - odd)) / 2) * 2 + odd, odd)
        if grid and not odd:
            code[(code == 2) & (size < 0.75)] = 0
        codes[kind], values[kind] = code, code - 0.5 * (code > 0) * grid
    shares = np.array([[share(edge, number, step) for number in range(TOP)] for edge in (_plain_edge, _shifted_edge)])
    for _ in range(TURNS):
        prices = -np.log2(shares.clip(1e-9)) + (np.arange(TOP) > 0)
        kinds = walked(
            np.stack([(size - values[kind]) ** 2 + PRICE * prices[kind // 2][codes[kind].astype(int)] for kind in range(4)]),
            states,
            feedback,
        )
        code, value = (np.take_along_axis(each, kinds[None], 0)[0] for each in (codes, values))
        counts = np.array([np.bincount(code[kinds // 2 == grid].astype(int), minlength=TOP) for grid in (0, 1)])
        shares = counts / counts.sum(1, keepdims=True)
    told = -np.log2(shares, where=shares > 0, out=np.zeros_like(shares)) + (np.arange(TOP) > 0)
    bits = float((counts * told).sum() / x.size)
    return bits, beyond(x, bits, np.copysign(value, x) * step)


def share(edge, number: int, step: float) -> float:
    below = lambda at: math.erf(at * step / math.sqrt(2))
    return below(edge(number + 1)) - (below(max(edge(number), 0.0)) if number else 0.0)


def walked(costs: np.ndarray, states: int, feedback: int) -> np.ndarray:
    """The kinds (rows, lanes) of the cheapest path from state zero, for costs (4, rows, lanes)."""
    every, top = np.arange(states), states.bit_length() - 2
    after = np.stack([(every >> 1) ^ ((every & 1) * feedback) ^ (odd << top) for odd in (0, 1)], 1)
    before = np.array([[state for state in every for odd in (0, 1) if after[state, odd] == end] for end in every])
    odds = np.array([[odd for state in every for odd in (0, 1) if after[state, odd] == end] for end in every])
    kinds, lanes = 2 * (before & 1) + odds, np.arange(costs.shape[2])
    least, turns = np.where(every[:, None] == 0, 0.0, 1e9) + np.zeros((states, len(lanes))), []
    for row in range(costs.shape[1]):
        ways = least[before] + costs[kinds, row]
        turns.append(ways.argmin(1))
        least = ways.min(1)
    state, found = least.argmin(0), np.empty(costs.shape[1:], dtype=np.int64)
    for row in range(costs.shape[1] - 1, -1, -1):
        way = turns[row][state, lanes]
        found[row], state = kinds[state, way], before[state, way]
    return found


if __name__ == "__main__":
    main()
