"""The k-th largest, against sorting: of even and uneven pieces, ties, both signs, both widths of floats, and samples that mislead."""

import numpy as np
import pytest
import torch

from modicum.merging import selection
from modicum.merging.selection import largest, ordered


def pieces_of(parts):
    """Pieces as an engine gives them, and how often each entry was read."""
    passes = []

    def pieces(function, stride=1):
        passes.append(stride)
        return [function(part[:, ::stride]) for part in parts]

    return pieces, passes


def draws(kind, rows, size, dtype):
    draw = np.random.default_rng(0)
    made = draw.standard_normal((rows, size))
    if kind == "few values":
        made = np.round(made * 2) / 2
    if kind == "one value":
        made[:] = 0.5
    if kind == "sorted":
        made.sort(axis=1)
    if kind == "wide":
        made *= 10.0 ** draw.integers(-30, 30, made.shape)
    return made.astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["normal", "few values", "one value", "sorted", "wide"])
@pytest.mark.parametrize("size", [1, 50, 70_000])
def test_as_sorting_says(kind, size, dtype, monkeypatch):
    monkeypatch.setattr(selection, "_HELD", 500)
    values = draws(kind, 2, size, dtype)
    counts = tuple(sorted({1, max(1, size // 5), max(1, size - 1), size}))
    pieces, passes = pieces_of(np.array_split(values, 7, axis=1))
    found = largest(pieces, (0, *counts), size)
    wanted = -np.sort(-values, axis=1)[:, [count - 1 for count in counts]].astype(np.float64)
    assert torch.equal(found[:, 1:], torch.from_numpy(wanted)) and bool(found[:, 0].isinf().all())
    assert len(passes) <= 6


def test_a_sample_and_one_pass_are_enough_of_what_is_even():
    pieces, passes = pieces_of(np.array_split(np.abs(draws("normal", 1, 500_000, np.float32)), 9, axis=1))
    largest(pieces, (100_000,), 500_000)
    assert len(passes) == 2 and passes[0] > 1 and passes[1] == 1


def test_a_sample_that_misleads_costs_passes_and_no_exactness():
    values = np.zeros((1, 400_000), dtype=np.float32)
    stride = int((400_000 / 4) ** (1 / 3))
    values[0, 1::stride] = np.arange(len(values[0, 1::stride])) + 1.0  # where the sample does not look
    pieces, passes = pieces_of([values])
    count = 5000
    assert float(largest(pieces, (count,), 400_000)) == np.sort(values[0])[-count] and len(passes) > 2


def test_bits_are_in_the_order_of_floats():
    values = np.array([-np.inf, -2.0, -1e-40, -0.0, 0.0, 1e-40, 3.0, np.inf], dtype=np.float32)
    bits = ordered(values).astype(np.int64)
    assert (np.diff(bits)[[0, 1, 2, 4, 5, 6]] > 0).all() and bits[3] == bits[4]
