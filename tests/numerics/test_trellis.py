import math

import numpy as np
import pytest

from modicum.forms import rans
from modicum.forms.trellis import SEGMENT, after, shifted
from modicum.numerics.trellis import PRICE, best


def cost(values, codes, tables):
    """What codes (rows,) near ``values`` cost on their path."""
    grids = shifted(codes[:, None])[:, 0]
    met = codes - 0.5 * np.sign(codes) * grids
    bits = rans.costs()[tables + rans.TABLES * grids, codes.astype(int) + rans.TOP]
    return float(((values - met) ** 2 + PRICE * bits).sum())


def twin(values, tables):
    """The cheapest path, walked row by row over all codes of each table."""
    paths = {0: (0.0, [])}
    for value, table in zip(values, tables):
        found = {}
        for state, (so_far, codes) in paths.items():
            grid = state & 1
            for code in range(-12, 13):
                bits = rans.costs()[table + grid * rans.TABLES, code + rans.TOP]
                spent = so_far + (value - (code - 0.5 * np.sign(code) * grid)) ** 2 + PRICE * bits
                ahead = int(after(np.uint8(state), np.uint8(code & 1)))
                if ahead not in found or spent < found[ahead][0]:
                    found[ahead] = (spent, [*codes, code])
        paths = found
    return min(paths.values())[0]


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 7, 13, 24])
def test_no_path_is_cheaper(rows):
    values = (np.random.default_rng(rows).normal(size=rows) * 1.5).astype(np.float32)
    tables = np.full(rows, 15, dtype=np.int64)
    codes, met = best(values, tables, 40)
    assert cost(values, codes, tables) == pytest.approx(twin(values, tables), rel=1e-4)
    assert np.array_equal(met, codes - 0.5 * np.sign(codes) * shifted(codes[:, None])[:, 0])


def test_lanes_and_segments_are_paths_of_their_own():
    values = np.random.default_rng(0).normal(size=(3, 2 * SEGMENT + 50)).astype(np.float32)
    tables = np.full(values.shape, 14, dtype=np.int64)
    together, alone = best(values, tables, 40)[0], [best(each, own, 40)[0] for each, own in zip(values, tables)]
    assert np.array_equal(together, np.stack(alone))
    assert np.array_equal(together[1, SEGMENT : 2 * SEGMENT], best(values[1, SEGMENT : 2 * SEGMENT], tables[1, :SEGMENT], 40)[0])


@pytest.mark.parametrize(("deviation", "least", "most"), [(0.7, 1.5, 1.9), (1.4, 2.4, 2.8), (3.0, 3.5, 3.9)])
def test_gaussians_within_a_sixth_of_a_bit_of_the_best_code(deviation, least, most):
    """One grid under an entropy coder is a quarter of a bit from it, at every rate."""
    values = (np.random.default_rng(1).normal(size=(60, 900)) * deviation).astype(np.float32)
    own = round((math.log2(deviation) - rans.FIRST) * rans.STEPS)
    codes, met = best(values, np.full(values.shape, own, dtype=np.int64), 100)
    grids = shifted(codes.T.copy()).T
    rate = float(rans.costs()[own + grids * rans.TABLES, codes.astype(int) + rans.TOP].mean())
    share = float((values * met).sum() / (met * met).sum())
    error = float(((values - share * met) ** 2).mean()) / deviation**2
    assert least < rate < most and 0 < rate + 0.5 * math.log2(error) < 1 / 6


def test_what_is_far_out_keeps_within_its_most():
    codes, met = best(np.array([500.0, -500.0, 0.0], dtype=np.float32), np.full(3, 32, dtype=np.int64), 21)
    assert 20 <= codes[0] <= 21 and -21 <= codes[1] <= -20 and abs(met[2]) <= 0.5
