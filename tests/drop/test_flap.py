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


@pytest.mark.parametrize(("groups", "power"), [([(0, 1), (2, 3)], 2), ([(0,), (1,), (2,), (3,)], 1)], ids=["heads", "channels"])
def test_columns_are_standardised_before_a_group_is_averaged(groups, power):
    inputs = torch.randn(50, 4) * torch.tensor([1.0, 2.0, 0.1, 3.0]) + torch.tensor([0.0, 5.0, 9.0, 0.0])
    stats = Stats(count=50, total=inputs.sum(0), square=inputs.square().sum(0))
    weight = torch.randn(6, 4)
    column = (inputs.var(0, unbiased=False) * weight.square().sum(0)) ** power
    expected = [sum((column[j] - column.mean()) / column.std(unbiased=False) for j in group) / len(group) for group in groups]
    torch.testing.assert_close(Flap().rank(weight, stats, groups), torch.stack(expected), rtol=1e-3, atol=1e-3)


def test_many_even_channels_do_not_cost_the_heads():
    """The few heads of a layer, which differ as channels do, are not first to go because they are few."""
    weight, heads = torch.ones(4, 64), [tuple(range(8 * head, 8 * head + 8)) for head in range(8)]
    square = torch.rand(64, generator=torch.Generator().manual_seed(0)).mul(2).add(0.5)
    stats = Stats(count=1, total=torch.zeros(64), square=square)
    scores = {"heads": Flap().rank(weight, stats, heads), "channels": Flap().rank(weight, stats, [(j,) for j in range(64)])}
    assert len(Flap(keep=0.8).select(scores, {"heads": 32, "channels": 4})["heads"]) == 8


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
    sizes = {"target": "modicum", "data": batches, "method": "flap keep=0.8"}
    result = modicum.fit(module, **sizes)
    assert any("layers.0:ffn" in event for event in result.receipt["events"])
    without = modicum.fit(module, **{**sizes, "method": "flap keep=0.8 bias=false"})
    assert result.receipt["quality"]["mean"] < without.receipt["quality"]["mean"]
    assert result.receipt["bytes"]["actual"] < without.receipt["bytes"]["original"]
    assert all(torch.isfinite(value).all() for value in plain)


def test_transformers_cannot_hold_uneven_cuts():
    module, batches = zoo.build("llama")
    with pytest.raises(SettingError, match="cannot hold its result"):
        modicum.fit(module, method="flap keep=0.7", target="transformers", data=batches)
