"""FLAP: groups that hardly fluctuate go, and biases keep the mean."""

import pytest
import torch

import modicum
from modicum.core.errors import SettingError
from modicum.core.unit import Stats
from modicum.data.splits import call
from modicum.drop import Flap
from modicum.models.open import open_model
from modicum.sweep import rehearse
from modicum.sweep.spill import SpillPool
from modicum.testing import zoo


def test_scores_are_variance_times_column_norm():
    inputs = torch.randn(50, 4) * torch.tensor([1.0, 2.0, 0.1, 3.0]) + torch.tensor([0.0, 5.0, 9.0, 0.0])
    stats = Stats(count=50, total=inputs.sum(0), square=inputs.square().sum(0))
    weight = torch.randn(6, 4)
    expected = inputs.var(0, unbiased=False) * weight.square().sum(0)
    torch.testing.assert_close(Flap().rank(weight, stats, [(0, 1), (2, 3)]), expected.view(2, 2).sum(1), rtol=1e-3, atol=1e-3)


def test_share_is_met_globally_and_every_site_keeps_one():
    scores = {"a": torch.tensor([1.0, 2.0, 3.0, 4.0]), "b": torch.tensor([9.0, 1.0])}
    kept = Flap(keep=0.5).select(scores, {"a": 10, "b": 20})
    assert len(kept["a"]) * 10 + len(kept["b"]) * 20 <= 40
    assert all(kept.values())
    assert Flap(keep=1.0).select(scores, {"a": 10, "b": 20}) == {"a": [0, 1, 2, 3], "b": [0, 1]}


def test_keep_everything_changes_nothing():
    module, batches = zoo.build("llama")
    model = open_model(module)
    change = Flap(keep=1.0).reshape(model, rehearse(model, batches[0]), batches, SpillPool(None))
    assert not change.forms and not change.biases


def test_the_bias_carries_the_mean():
    module, batches = zoo.build("opt")
    with torch.no_grad():  # channels of the first block that never move: all that they do is a constant
        layer = module.model.decoder.layers[0]
        layer.fc1.weight[:64] = 0
        layer.fc1.bias[:64] = 5.0
        plain = [call(module, batch).logits for batch in batches]
    sizes = {"target": "modicum", "data": batches, "method": "flap keep=0.88"}
    result = modicum.fit(module, **sizes)
    assert any("layers.0.fc2" in str(event) or "layers.0" in event for event in result.receipt["events"])
    without = modicum.fit(module, **{**sizes, "method": "flap keep=0.88 bias=false"})
    assert result.receipt["quality"]["mean"] < without.receipt["quality"]["mean"]
    assert result.receipt["bytes"]["actual"] < without.receipt["bytes"]["original"]
    assert all(torch.isfinite(value).all() for value in plain)


def test_transformers_cannot_hold_uneven_cuts():
    module, batches = zoo.build("llama")
    with pytest.raises(SettingError, match="cannot hold its result"):
        modicum.fit(module, method="flap keep=0.7", target="transformers", data=batches)
