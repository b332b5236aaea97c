import pytest
import torch

from modicum.core.errors import SettingError
from modicum.factor import Svd
from modicum.quantize import Nearest


def test_no_other_factors_of_that_rank_are_closer(layer):
    thing = layer(24, 40)
    values = torch.linalg.svdvals(thing.weight.double())
    for rank in (1, 5, 23):
        lost = (thing.apply(Svd(rank=rank)).dense() - thing.weight).norm()
        assert float(lost) == pytest.approx(float(values[rank:].square().sum().sqrt()), rel=1e-4)


@pytest.mark.parametrize("shape", [(24, 96), (96, 24), (32, 32)])
def test_it_reduces_to_the_weight_at_full_rank(layer, shape):
    thing = layer(*shape)
    form = thing.apply(Svd(rank=min(shape)))
    assert form.rank == min(shape)
    torch.testing.assert_close(form.dense(), thing.weight, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("keep", [0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(24, 96), (50, 50)])
def test_keep_bounds_the_stored_numbers(layer, keep, shape):
    form = layer(*shape).apply(Svd(keep=keep))
    rows, columns = shape
    assert form.values <= keep * rows * columns < form.values + rows + columns
    assert form.nbytes == 4 * form.values


def test_rank_overrides_keep_and_stops_at_full(layer):
    assert layer().apply(Svd(keep=0.1, rank=7)).rank == 7
    assert layer().apply(Svd(rank=1000)).rank == 24
    assert layer().apply(Svd(keep=0.0)).rank == 1


@pytest.mark.parametrize("shape", [(24, 96), (96, 24), (5, 1), (1, 5)])
def test_one_direction_is_enough_for_rank_one(layer, shape):
    thing = layer(*shape)
    thing.weight = torch.randn(shape[0], 1) @ torch.randn(1, shape[1])
    torch.testing.assert_close(thing.apply(Svd(rank=1)).dense(), thing.weight, rtol=1e-4, atol=1e-5)


def test_factors_are_balanced(layer):
    thing = layer()
    thing.weight = thing.weight * 1e6
    form = thing.apply(Svd(rank=4))
    torch.testing.assert_close(form.left.norm(dim=0), form.right.norm(dim=1), rtol=1e-3, atol=0)


def test_a_weight_of_zeros_stays_zero(layer):
    thing = layer(8, 16)
    thing.weight = torch.zeros(8, 16)
    assert torch.equal(thing.apply(Svd(rank=2)).dense(), thing.weight)


def test_it_cannot_come_after_a_quantizer(layer):
    with pytest.raises(SettingError, match=r"factor/svd: must come before .* left it integer\. Put factor/svd first"):
        layer().apply(Nearest(), Svd())


@pytest.mark.parametrize("settings", [{"rank": 0}, {"keep": -0.1}, {"keep": 2.1}])
def test_settings_out_of_bounds_are_refused(settings):
    with pytest.raises(SettingError, match=r"svd\.(rank|keep): must lie between"):
        Svd(**settings)
