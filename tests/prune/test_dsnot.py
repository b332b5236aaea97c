import pytest
import torch

from modicum.core.errors import SettingError
from modicum.core.unit import Stats
from modicum.prune import Dsnot, Magnitude, Wanda


def shifted(layer):
    """A layer whose inputs have means of their own, so that what is removed moves its mean outputs."""
    thing = layer(32, 128, correlated=False, scales=10 ** torch.linspace(-1, 1, 128)[torch.randperm(128)])
    thing.inputs += 2 * torch.randn(128) * thing.inputs.std(0)
    return thing


def mean_error(thing, mask):
    return ((thing.weight * ~mask) @ thing.inputs.mean(0)).abs()


def naive(weight, inputs, mask, cycles, group=None):
    """The procedure in plain loops, an exchange at a time."""
    mean, variance, norm = inputs.mean(0), inputs.var(0, correction=0), inputs.norm(dim=0)
    mask = mask.clone()
    for row, kept in zip(weight, mask):
        for _ in range(cycles):
            error = float((row * mean)[~kept].sum())
            sign = 1 if error > 0 else -1
            gone = [k for k in range(len(row)) if not kept[k]]
            if error == 0 or not gone:
                break
            grow = max(gone, key=lambda k: float(sign * row[k] * mean[k] / variance[k]))
            out = [k for k in range(len(row)) if kept[k] and sign * row[k] * mean[k] < 0 and (group is None or k // group == grow // group)]
            if not out:
                break
            drop = min(out, key=lambda k: float(row[k].abs() * norm[k]))
            after = error - float(row[grow] * mean[grow]) + float(row[drop] * mean[drop])
            if abs(after) >= abs(error):
                break
            kept[grow], kept[drop] = True, False
    return mask


@pytest.mark.parametrize(("settings", "group"), [({"keep": 0.4}, None), ({"pattern": "2:4"}, 4)])
def test_it_is_the_naive_procedure(layer, settings, group):
    thing = shifted(layer)
    thing.weight, thing.inputs = thing.weight.double()[:8], thing.inputs.double()
    stats = Stats(count=len(thing.inputs), total=thing.inputs.sum(0), square=thing.inputs.square().sum(0))
    start = Wanda(**settings).solve(thing.weight, stats)[1]
    assert torch.equal(
        Dsnot(**settings, exchanges=12 / 128).solve(thing.weight, stats)[1], naive(thing.weight, thing.inputs, start, 12, group)
    )


@pytest.mark.parametrize("settings", [{"keep": 0.3}, {"pattern": "2:4"}, {"keep": 0.3, "start": "magnitude"}])
def test_mean_outputs_come_nearer_and_the_share_stays(layer, settings):
    thing = shifted(layer)
    stats = thing.stats(Dsnot.needs)
    before, after = (Dsnot(**settings, exchanges=most).solve(thing.weight, stats)[1] for most in (0.0, 0.4))
    assert mean_error(thing, after).sum() < (0.7 if "pattern" in settings else 0.3) * mean_error(thing, before).sum()
    assert (mean_error(thing, after) <= mean_error(thing, before) + 1e-4).all()
    assert torch.equal(after.sum(1), before.sum(1))
    if "pattern" in settings:
        assert (after.view(32, -1, 4).sum(-1) == 2).all()


def test_it_starts_where_it_is_told(layer):
    thing = shifted(layer)
    stats = thing.stats(Dsnot.needs)
    assert torch.equal(Dsnot(keep=0.4, exchanges=0.0).solve(thing.weight, stats)[1], Wanda(keep=0.4).solve(thing.weight, stats)[1])
    started = Dsnot(keep=0.4, start="magnitude", exchanges=0.0).solve(thing.weight, stats)[1]
    assert torch.equal(started, Magnitude(keep=0.4, per_row=True).solve(thing.weight, stats)[1])


def test_without_data_magnitude_stands_in_and_a_malformed_pattern_is_told():
    assert Dsnot(keep=0.3).without_data() == Magnitude(keep=0.3, per_row=True)
    with pytest.raises(SettingError, match=r"prune/dsnot\.pattern: must be n:m"):
        Dsnot(pattern="4:2")
