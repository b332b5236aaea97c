from dataclasses import dataclass

import numpy as np
import pytest

from modicum.numerics.foreseen import between, inverse, nearer


@dataclass
class Trial:
    scale: float
    size: int


# Bits of 1,000 codes that lose one with each octave.
CURVE = np.arange(-4.0, 5.0), 1000.0 * np.arange(9, 0, -1)


def test_a_curve_is_read_backwards():
    assert inverse(CURVE, 5000) == 1 and inverse(CURVE, 5500) == pytest.approx(2**-0.5)


def test_lines_between_sizes_in_any_order():
    assert between([4.0, 1.0], [500, 1000], 750) == pytest.approx(2.0)


@pytest.mark.parametrize("aim", [600, 620, 700])
def test_what_is_met_leads_to_the_aim(aim):
    size = lambda scale: round((5000 - 1100 * np.log2(scale)) / 8)
    met = [Trial(1.0, size(1.0))]
    for _ in range(6):
        scale = nearer(CURVE, met, aim)
        met.append(Trial(scale, size(scale)))
    assert abs(met[-1].size - aim) <= 1


@pytest.mark.parametrize("slope", [150, 250, 500])
def test_sizes_that_fall_slowly_are_met_too(slope):
    size = lambda scale: round((5000 - slope * np.log2(scale)) / 8)
    met = [Trial(1.0, size(1.0))]
    while len(met) < 8 and met[-1].size > 580:
        scale = nearer(CURVE, met, 580)
        met.append(Trial(scale, size(scale)))
    assert met[-1].size <= 580
