import pytest
import torch

from modicum.core.errors import SettingError
from modicum.numerics.grid import Grid
from modicum.quantize import Nearest


def test_every_weight_goes_to_its_nearest_level(layer):
    thing = layer(4, 20)
    form = thing.apply(Nearest(bits=3, group=8))
    for row in range(4):
        for columns in (range(8), range(8, 16), range(16, 20)):
            values = thing.weight[row, list(columns)].double()
            low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
            step = (high - low) / 7
            levels = torch.tensor([(code - round(-low / step)) * step for code in range(8)])
            expected = levels[(values[:, None] - levels).abs().argmin(1)]
            torch.testing.assert_close(form.dense()[row, list(columns)], expected.float(), rtol=1e-5, atol=1e-5)


def test_each_bit_halves_the_error(layer):
    thing = layer(64, 128)
    errors = [float((thing.apply(Nearest(bits=bits)).dense() - thing.weight).norm()) for bits in range(2, 9)]
    assert all(1.7 < before / after < 2.6 for before, after in zip(errors, errors[1:]))


def test_eight_bits_are_within_half_a_level(layer):
    thing = layer()
    form = thing.apply(Nearest(bits=8, group=0))
    assert ((form.dense() - thing.weight).abs() <= form.scale * 0.5001).all()


def test_no_clip_is_the_whole_range(layer):
    thing = layer()
    expected = Grid(4, 32).encode(thing.weight, *Grid(4, 32).fit(thing.weight, torch.float32))
    assert torch.equal(thing.apply(Nearest(bits=4, group=32)).dense(), expected.dense())


def test_clipping_lowers_the_error(layer):
    thing = layer()
    error = lambda clip: float((thing.apply(Nearest(bits=2, clip=clip)).dense() - thing.weight).norm())
    assert error(0.4) < 0.9 * error(1.0)


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_grid_has_a_zero_point_where_it_is_not_symmetric(layer, symmetric):
    form = layer().apply(Nearest(symmetric=symmetric))
    assert (form.zero is None) == symmetric
    assert "zero" in form.tensors() or symmetric


def test_it_cannot_come_after_another_quantizer(layer):
    with pytest.raises(SettingError, match=r"quantize/nearest: must come before .* left it integer\. Put quantize/nearest first"):
        layer().apply(Nearest(), Nearest())
