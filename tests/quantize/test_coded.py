import pytest
import torch

from modicum.quantize import Coded, Nearest


def test_a_coded_form_has_less_error_than_a_grid_of_the_same_bytes(layer):
    thing = layer(256, 128)
    grid = thing.apply(Nearest(bits=4, group=0, symmetric=True))
    ours = thing.apply(Coded(rate=8 * grid.nbytes / (256 * 128) - 0.01))
    assert ours.nbytes <= grid.nbytes
    assert (ours.dense() - thing.weight).norm() < 0.6 * (grid.dense() - thing.weight).norm()


@pytest.mark.parametrize("bits", [1.0, 2.5, 6.0])
def test_each_row_pays_for_its_own_deviation(layer, bits):
    """Rows of very different sizes under one step: large ones take the bits, small ones next to none."""
    thing = layer(64, 128)
    thing.weight *= torch.logspace(0, -3, 64)[:, None]
    form = thing.apply(Coded(rate=bits))
    assert form.rows[0] - form.rows[-1] == pytest.approx(4 * 3 * 3.32, abs=6)
    assert (form.codes[0] != 0).any() and not form.codes[-1].any()
