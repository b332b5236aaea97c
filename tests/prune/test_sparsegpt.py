from dataclasses import replace

import pytest
import torch

from modicum.core.errors import ModelError, SettingError
from modicum.core.method import Need
from modicum.core.unit import Stats
from modicum.prune import Magnitude, Sparsegpt, Wanda


def textbook(weight, covariance, count, span):
    """The papers' loop in float64: masks by w² / U_kk² when a span begins, errors over U_kk times U's row taken off later columns."""
    work, chosen = weight.double().clone(), torch.zeros_like(weight, dtype=torch.float64)
    damped = covariance.double() + 0.01 * covariance.double().diagonal().mean() * torch.eye(len(covariance))
    upper = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    mask = torch.zeros_like(weight, dtype=torch.bool)
    for k in range(work.shape[1]):
        if k % span == 0:
            scores = (work[:, k : k + span] / upper.diagonal()[k : k + span]).square()
            mask[:, k : k + span] = count(scores)
        chosen[:, k] = work[:, k] * mask[:, k]
        work[:, k:] -= ((work[:, k] - chosen[:, k]) / upper[k, k])[:, None] * upper[k, k:]
    return chosen, mask


def largest(share):
    return lambda scores: torch.zeros_like(scores, dtype=torch.bool).flatten().scatter(
        0, scores.flatten().topk(round(share * scores.numel())).indices, True
    ).view_as(scores)  # fmt: skip


def n_of(n):
    return lambda scores: torch.zeros_like(scores, dtype=torch.bool).scatter(1, scores.topk(min(n, scores.shape[1])).indices, True)


@pytest.mark.parametrize(
    "settings, count, span",
    [
        ({"keep": 0.5, "block": 128}, largest(0.5), 128),
        ({"keep": 0.3, "block": 4000}, largest(0.3), 4000),
        pytest.param({"keep": 0.5, "block": 32}, largest(0.5), 32),
        pytest.param({"keep": 0.5, "block": 24}, largest(0.5), 24),
        pytest.param({"pattern": "2:4"}, n_of(2), 4),
        pytest.param({"pattern": "2:6"}, n_of(2), 6),
    ],
)
def test_masks_and_values_are_those_of_the_paper(layer, settings, count, span):
    thing = layer()
    stats = thing.stats(Sparsegpt.needs)
    value, mask = Sparsegpt(**settings).solve(thing.weight, stats)
    expected, wanted = textbook(thing.weight, stats.covariance, count, span)
    assert torch.equal(mask, wanted)
    torch.testing.assert_close(value.double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("settings", [{"keep": 0.5}, {"keep": 0.7}, {"keep": 0.5, "block": 32}, {"pattern": "2:4"}])
def test_it_beats_wanda_where_inputs_are_correlated(layer, settings):
    thing = layer(32, 128)
    wanda = {name: value for name, value in settings.items() if name != "block"}
    assert thing.error(thing.apply(Sparsegpt(**settings))) < 0.6 * thing.error(thing.apply(Wanda(**wanda)))


def test_what_remains_makes_up_for_what_went(layer):
    thing = layer()
    form = thing.apply(Sparsegpt(keep=0.5))
    masked = Magnitude(keep=1.0)._prune(thing.weight * form.mask, Stats())
    assert thing.error(form) < 0.7 * thing.error(masked)


@pytest.mark.parametrize("settings", [{"pattern": "2:4"}, {"pattern": "4:8"}])
def test_it_reduces_to_wanda_where_the_covariance_is_diagonal(layer, settings):
    thing, square = layer(), torch.rand(96) + 0.1
    form = thing.apply(Sparsegpt(damping=0.0, **settings), stats=Stats(covariance=torch.diag(square)))
    assert torch.equal(form.mask, thing.apply(Wanda(**settings), stats=Stats(square=square)).mask)
    assert torch.equal(form.dense(), thing.weight * form.mask)


def test_it_reduces_to_wanda_on_a_row_of_one_block(layer):
    thing, square = layer(1, 96), torch.rand(96) + 0.1
    form = thing.apply(Sparsegpt(damping=0.0, keep=0.3), stats=Stats(covariance=torch.diag(square)))
    assert torch.equal(form.mask, thing.apply(Wanda(keep=0.3), stats=Stats(square=square)).mask)


def test_everything_kept_is_the_weight_itself(layer):
    thing = layer()
    assert torch.equal(thing.apply(Sparsegpt(keep=1.0)).dense(), thing.weight)


@pytest.mark.parametrize("pattern, columns", [("2:4", 96), ("2:4", 98), ("3:5", 64), ("1:3", 50)])
def test_patterns_keep_n_of_every_m(layer, pattern, columns):
    n, m = map(int, pattern.split(":"))
    mask = layer(8, columns).apply(Sparsegpt(pattern=pattern)).mask
    assert all((part.sum(1) == min(n, part.shape[1])).all() for part in mask.split(m, 1))


def test_each_block_keeps_its_share(layer):
    mask = layer(8, 100).apply(Sparsegpt(keep=0.3, block=32)).mask
    assert [int(part.sum()) for part in mask.split(32, 1)] == [round(0.3 * 8 * 32)] * 3 + [round(0.3 * 8 * 4)]


def test_raised_damping_is_told(layer):
    thing = layer(tokens=1)
    stats = thing.stats(Sparsegpt.needs)
    thing.apply(Sparsegpt(damping=1e-9), stats=stats)
    (event,) = stats.events
    assert event.startswith("damping raised ") and "times to" in event


def test_damping_that_cannot_help_is_told(layer):
    with pytest.raises(ModelError, match="makes the covariance positive definite"):
        layer(tokens=1).apply(Sparsegpt(damping=0.0))


def test_without_data_magnitude_stands_in():
    assert Sparsegpt(keep=0.3, block=64).without_data() == Magnitude(keep=0.3)
    assert Sparsegpt(pattern="2:4").without_data() == Magnitude(pattern="2:4")


def test_a_malformed_pattern_is_told():
    with pytest.raises(SettingError, match=r"prune/sparsegpt\.pattern: must be n:m with 0 < n <= m <= 64, got '4:2'\."):
        Sparsegpt(pattern="4:2")


@pytest.mark.parametrize("settings", [{"keep": 0.5}, {"keep": 0.3, "block": 32}, {"pattern": "2:4"}])
def test_what_remains_is_fitted_once_more_under_the_same_mask(layer, settings):
    thing = layer(32, 128)
    plain, refitted = (thing.apply(Sparsegpt(**settings, refit=rounds)) for rounds in (0, 1))
    assert torch.equal(plain.mask, refitted.mask)
    assert thing.error(refitted) < 0.9 * thing.error(plain)


def test_weights_make_up_for_how_their_inputs_drifted(layer):
    thing = layer(32, 128)
    stats = thing.stats(Sparsegpt.needs)
    stats = replace(stats, drift=0.1 * stats.covariance)  # the original's inputs are 1.1 times what came
    weight = Sparsegpt(keep=1.0, damping=1e-6).target(thing.weight, stats)
    torch.testing.assert_close(weight, 1.05 * thing.weight, rtol=1e-2, atol=1e-2)
    assert Need.DRIFT not in Sparsegpt(towards=0).wanted()
