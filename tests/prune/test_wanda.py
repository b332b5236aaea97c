import pytest
import torch

from modicum.core.errors import SettingError
from modicum.core.unit import Stats
from modicum.prune import Magnitude, Wanda


def uneven(layer):
    """A layer whose inputs differ in norm by a factor of a hundred."""
    return layer(32, 128, correlated=False, scales=10 ** torch.linspace(-1, 1, 128)[torch.randperm(128)])


@pytest.mark.parametrize("settings", [{"keep": 0.5}, {"keep": 0.3}, {"pattern": "2:4"}])
def test_it_beats_magnitude_where_input_norms_differ(layer, settings):
    thing = uneven(layer)
    assert thing.error(thing.apply(Wanda(**settings))) < 0.5 * thing.error(thing.apply(Magnitude(**settings)))


def test_scores_are_magnitude_times_norm(layer):
    thing = uneven(layer)
    expected = thing.weight.abs() * thing.inputs.norm(dim=0)
    torch.testing.assert_close(Wanda().score(thing.weight, thing.stats(Wanda.needs)), expected)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.5, 1.0])
def test_every_row_keeps_the_same_share(layer, keep):
    mask = uneven(layer).apply(Wanda(keep=keep)).mask
    assert (mask.sum(1) == round(keep * 128)).all()


@pytest.mark.parametrize("settings", [{"keep": 0.3}, {"pattern": "2:4"}])
def test_it_reduces_to_magnitude_per_row_where_all_norms_are_one(layer, settings):
    thing, stats = layer(), Stats(square=torch.full((96,), 4.0))
    mask = thing.apply(Wanda(**settings), stats=stats).mask
    for row in range(24):
        alone = layer(1, 96)
        alone.weight = thing.weight[row : row + 1]
        assert torch.equal(mask[row : row + 1], alone.apply(Magnitude(**settings)).mask)


def test_inputs_never_seen_go_first(layer):
    thing = layer()
    square = torch.ones(96)
    square[::2] = 0
    assert not thing.apply(Wanda(keep=0.5), stats=Stats(square=square)).mask[:, ::2].any()


def test_without_data_magnitude_stands_in():
    assert Wanda(keep=0.3).without_data() == Magnitude(keep=0.3, per_row=True)
    assert Wanda(pattern="2:4").without_data() == Magnitude(pattern="2:4", per_row=True)


def test_a_malformed_pattern_is_told():
    with pytest.raises(SettingError, match=r"prune/wanda\.pattern: must be n:m with 0 < n <= m <= 64, got '4:2'\."):
        Wanda(pattern="4:2")
