"""Bonsai: what a group costs is told by forwards of sub-models alone."""

import pytest
import torch

from modicum.core.errors import ModelError
from modicum.drop import Bonsai
from modicum.drop.bonsai import _ridge
from modicum.models.open import open_model
from modicum.sweep import rehearse
from modicum.sweep.spill import SpillPool
from modicum.testing import zoo


def test_the_regression_finds_costs_and_leans_on_what_is_expected():
    chance = torch.Generator().manual_seed(0)
    half = (torch.rand(40, 12, generator=chance) < 0.5).float()
    masks, costs = torch.cat([half, 1 - half]), torch.arange(1.0, 13.0)
    found = _ridge(masks, masks @ costs, torch.full((12,), 6.0))
    assert found.argsort().tolist() == list(range(12))
    few = _ridge(masks[[0, 40]], (masks @ costs)[[0, 40]], costs)  # two trials: what was foretold stays
    assert torch.corrcoef(torch.stack([few, costs]))[0, 1] > 0.9
    assert bool(_ridge(masks, torch.zeros(80), costs).isfinite().all())


def test_groups_that_nothing_needs_go_without_a_backward_pass(monkeypatch):
    module, batches = zoo.build("llama")
    weight = module.model.layers[2].mlp.down_proj.weight
    weight.data[:, :6] = 0
    model = open_model(module)
    script = rehearse(model, batches[0])
    monkeypatch.setattr(torch.Tensor, "backward", lambda *_, **__: pytest.fail("went backward"))
    method = Bonsai(keep=0.97, trials=8, rounds=1, sequences=2)
    change = method.reshape(model, script, batches, SpillPool(None))
    assert not change.forms["model.layers.2.mlp.down_proj.weight"].columns[:6].any()
    again = method.reshape(model, script, batches, SpillPool(None))
    assert all(torch.equal(change.forms[name].dense(), form.dense()) for name, form in again.forms.items())
    assert not Bonsai(keep=1.0, trials=2, sequences=1).reshape(model, script, batches, SpillPool(None)).forms
    assert Bonsai(keep=0.9, trials=0).reshape(model, script, batches, SpillPool(None)).forms


def test_a_model_without_cuts_is_refused_in_a_sentence():
    module, batches = zoo.build("mlp")
    model = open_model(module)
    with pytest.raises(ModelError, match="drop/bonsai: the model must have coupled cuts"):
        Bonsai().reshape(model, rehearse(model, batches[0]), batches, SpillPool(None))
