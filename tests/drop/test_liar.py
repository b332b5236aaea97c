"""LIAR: what is lost is interpolated from what is kept, whoever chose it."""

import pytest
import torch

from modicum.core.errors import SettingError
from modicum.drop import Liar, Ziplm
from modicum.models.open import open_model
from modicum.sweep import rehearse
from modicum.sweep.spill import SpillPool
from modicum.testing import zoo


def lost(data, columns, part):
    """Squared error of the outputs with ``part`` on ``columns`` in place of the whole weight, relative to their energy."""
    whole = data.inputs @ data.weight.T
    return float((data.inputs[:, columns] @ part.T - whole).square().sum() / whole.square().sum())


@pytest.mark.parametrize("criterion", ["energy", "magnitude"])
def test_interpolation_loses_less_than_removal_by_either_criterion(layer, criterion):
    data = layer(rows=24, columns=96)
    groups, covariance = [tuple(range(start, start + 4)) for start in range(0, 96, 4)], data.inputs.T @ data.inputs
    plain, ours = (Liar(keep=0.5, criterion=criterion, interpolate=interpolate) for interpolate in (False, True))
    assert plain.order(data.weight, covariance, groups) == ours.order(data.weight, covariance, groups)
    kept = torch.tensor([column for group in ours.kept(ours.order(data.weight, covariance, groups)) for column in groups[group]])
    found = [lost(data, kept, method.refit(data.weight, covariance, kept)) for method in (ours, plain)]
    assert found[0] < 0.5 * found[1]


def test_what_is_folded_in_is_the_least_squares_interpolation(layer):
    data, kept = layer(rows=8, columns=24), torch.arange(0, 24, 2)
    covariance, gone = (data.inputs.T @ data.inputs).double(), torch.arange(1, 24, 2)
    map_back = torch.linalg.lstsq(data.inputs[:, kept].double(), data.inputs[:, gone].double()).solution
    expected = data.weight[:, kept].double() + data.weight[:, gone].double() @ map_back.T
    found = Liar(damping=0.0).refit(data.weight, covariance.float(), kept)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)


def test_the_criterion_says_which_go(layer):
    data = layer(columns=32, correlated=False, scales=torch.linspace(0.2, 2, 32))
    covariance, groups = torch.diag(data.inputs.square().sum(0)), [(column,) for column in range(32)]
    assert Liar(criterion="magnitude").order(data.weight, covariance, groups) == data.weight.square().sum(0).argsort(stable=True).tolist()
    assert Liar().order(data.weight, covariance, groups) == Ziplm(damping=0.0, lot=0.0).order(data.weight, covariance, groups)


def test_keep_everything_changes_nothing():
    module, batches = zoo.build("llama")
    model = open_model(module)
    change = Liar(keep=1.0).reshape(model, rehearse(model, batches[0]), batches, SpillPool(None))
    assert len(change.forms) == 21 and not change.biases and not change.dropped
    for name, form in change.forms.items():
        assert torch.equal(form.dense(), model.matrix(model.units[name]))


def test_an_unknown_criterion_is_told():
    with pytest.raises(SettingError, match="criterion: must be one of energy, magnitude"):
        Liar(criterion="noise")
