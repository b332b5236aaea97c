import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modicum.numerics.waterfill import least_bits


def twin(spectrum, variances, error):
    """Every component of every row by itself, the water let in drop by drop."""
    parts = (variances[:, None] * spectrum[None]).double().flatten()
    low, high = 0.0, float(parts.max())
    for _ in range(200):
        level = (low + high) / 2
        low, high = (low, level) if float(parts.clamp(max=level).sum()) > error else (level, high)
    return float((parts / low).clamp_min(1).log2().sum()) / 2 / len(parts)


@given(st.integers(1, 9), st.integers(1, 9), st.floats(1e-6, 0.999), st.integers(0, 50))
def test_it_is_water_filling_over_all_components(rows, columns, share, seed):
    chance = torch.Generator().manual_seed(seed)
    spectrum, variances = (torch.rand(count, generator=chance).double() ** 6 + 1e-6 for count in (columns, rows))
    error = share * float(spectrum.sum() * variances.sum())
    assert least_bits(spectrum, variances, error) == pytest.approx(twin(spectrum, variances, error), abs=1e-6)


def test_alike_weights_and_inputs_take_the_textbooks_bits():
    assert least_bits(torch.full((8,), 4.0), torch.full((3,), 0.25), 24 / 2**6) == pytest.approx(3.0)


def test_ends():
    spectrum, variances = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([1.0, 0.0])
    assert least_bits(spectrum, variances, 3.0) == 0 == least_bits(spectrum, torch.zeros(2), 0.0)
    assert least_bits(spectrum, variances, 0.0) == math.inf
