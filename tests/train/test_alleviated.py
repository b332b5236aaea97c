"""BA-LoRA's terms: each is nothing at its zero, pulls where it says, and all reduce to the plain objectives."""

import copy

import pytest
import torch
from torch import nn

from modicum.core.errors import SettingError
from modicum.testing import zoo
from modicum.train.alleviated import alleviated
from modicum.train.objectives import classes, next_token

X, Y = torch.randn(32, 8, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 5
NONE = {"consistency": 0.0, "diversity": 0.0, "spectrum": 0.0}


def net():
    torch.manual_seed(0)
    return nn.Linear(8, 5)


def test_without_weights_it_is_the_plain_objective():
    model = net()
    for one, other in zip(alleviated(model, **NONE)(model, (X, Y)), classes(model, (X, Y))):
        torch.testing.assert_close(one, other)
    llama, (batch, *_) = zoo.build("llama")
    with torch.no_grad():
        (one, count), (other, wanted) = alleviated(llama, **NONE)(llama, batch), next_token(llama, batch)
    assert count == wanted
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_consistency_is_nothing_at_the_model_before_and_grows_away_from_it():
    before, away = net(), net()
    away.weight.data += torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    objective = alleviated(before, **NONE | {"consistency": 1.0})
    for model, more in ((before, 0.0), (away, 0.1)):
        gap = float((objective(model, (X, Y))[0] - classes(model, (X, Y))[0]).mean().detach())
        assert gap == pytest.approx(0, abs=1e-6) if not more else gap > more


@pytest.mark.parametrize("term", ["diversity", "spectrum"])
def test_each_term_falls_when_it_alone_is_minimized(term):
    model = net()
    measure = lambda one: alleviated(model, **NONE | {term: 1.0})(one, (X, Y))[0].mean() - classes(one, (X, Y))[0].mean()
    learnt = copy.deepcopy(model)
    optimizer = torch.optim.SGD(learnt.parameters(), lr=0.01)
    for _ in range(20):
        optimizer.zero_grad()
        measure(learnt).backward()
        optimizer.step()
    assert float(measure(learnt).detach()) < float(measure(model).detach()) - 1e-3


def test_weights_below_zero_are_refused():
    with pytest.raises(SettingError, match="alleviated: weights must be 0 or more"):
        alleviated(net(), consistency=-1.0)
