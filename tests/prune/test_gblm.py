import pytest
import torch

from modicum.core.errors import SettingError
from modicum.core.slopes import Slopes
from modicum.core.unit import Stats
from modicum.prune import Gblm, Magnitude, Wanda


def test_without_gradients_it_is_wanda(layer):
    thing = layer()
    stats = thing.stats(Gblm.needs)
    wanda = Wanda(keep=0.4).solve(thing.weight, stats)[1]
    assert torch.equal(Gblm(keep=0.4, gradients=0.0).solve(thing.weight, stats)[1], wanda)
    assert not torch.equal(Gblm(keep=0.4, gradients=1.0).solve(thing.weight, stats)[1], wanda)


def test_what_the_loss_feels_is_kept():
    """Two inputs of one norm, of which a loss feels the second alone; a loss of another scale keeps the same."""
    inputs = torch.ones(1, 4)
    felt = torch.tensor([[0.0, 1.0, 0.0, 1.0]])
    for scale in (1e-4, 1.0, 1e4):
        slopes = Slopes(2, torch.zeros(1, 4), scale * felt)
        mask = Gblm(keep=0.5).solve(torch.tensor([[1.05, 1.0, -1.05, -1.0]]), Stats(square=inputs.square().sum(0), slopes=slopes))[1]
        assert mask.tolist() == [[False, True, False, True]]


def test_no_gradient_anywhere_leaves_wanda_and_none_seen_magnitude(layer):
    thing = layer()
    stats = thing.stats(Gblm.needs)
    stats.slopes = Slopes(0, torch.zeros(24, 96), torch.zeros(24, 96))
    assert torch.equal(Gblm(keep=0.4).solve(thing.weight, stats)[1], Wanda(keep=0.4).solve(thing.weight, stats)[1])
    stats.slopes = None
    form = thing.apply(Gblm(keep=0.4), stats=stats)
    assert stats.events == ["gradients of its weights were not seen, magnitude keep=0.4 per_row=true stands in for gblm keep=0.4"]
    assert torch.equal(form.dense() != 0, Magnitude(keep=0.4, per_row=True).solve(thing.weight, stats)[1])
    with pytest.raises(SettingError, match=r"prune/gblm\.pattern: must be n:m"):
        Gblm(pattern="4:2")
