"""Choosing methods and ranks: the forecast of a first update is right, chance gains nothing, and what is spent is within what may be."""

import copy

import pytest
import torch
from torch import nn

from modicum.core.errors import BudgetError
from modicum.core.option import Option
from modicum.testing import zoo
from modicum.train import auto
from modicum.train.adapt import adapt
from modicum.train.objectives import next_token
from modicum.train.settings import Loop
from modicum.train.trained import trained


def rows(count=16, most=12):
    draw = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(3, most, (1, 16), generator=draw)} for _ in range(count)]


def loss(model, some):
    with torch.no_grad():
        found = [next_token(model, row) for row in some]
    return sum(float(each.sum()) for each, _ in found) / sum(count for _, count in found)


@pytest.mark.parametrize("option", ["shift", "lora_ga rank=2"])
def test_what_a_first_update_gains_is_forecast(option):
    """Each number a little against the sign of its gradient, as Adam's first update does."""
    model, _ = zoo.build("llama")
    units = {name: unit for name, unit in auto.planned_units(model).items() if name == "model.layers.0.mlp.up_proj.weight"}
    ((name, unit),) = units.items()
    swept = auto.sweep(model, rows(), units)
    (method,) = Option.parse(option, trained=True).steps
    gained, count = auto.gain(method, unit, model.get_parameter(name).detach(), swept, seed=0)
    small, before = 1e-2, loss(model, rows()[1::2])
    with trained(copy.deepcopy(model), {name: option}, gradients=swept.first) as t:
        assert t.count == count
        losses = [next_token(t.module, row) for row in rows()[::2]]
        (sum(each.sum() for each, _ in losses) / sum(tokens for _, tokens in losses)).backward()
        with torch.no_grad():
            for parameter in t.parameters():
                parameter -= small * method.rate * parameter.grad.sign()
        ahead = (before - loss(t.module, rows()[1::2])) / small
    assert gained > 0 and ahead == pytest.approx(gained, rel=0.3)


def test_the_sweep_leaves_the_model_as_it_was_and_its_halves_are_gradients():
    model, _ = zoo.build("llama")
    state, asked = copy.deepcopy(model.state_dict()), {name: p.requires_grad for name, p in model.named_parameters()}
    units = auto.planned_units(model)
    swept = auto.sweep(model, rows(4), units)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert asked == {name: p.requires_grad for name, p in model.named_parameters()} and all(p.grad is None for p in model.parameters())
    found = [next_token(model, row) for row in rows(4)[::2]]
    (sum(each.sum() for each, _ in found) / sum(count for _, count in found)).backward()
    name = "model.layers.1.self_attn.q_proj.weight"
    torch.testing.assert_close(swept.first[name], model.get_parameter(name).grad, rtol=1e-3, atol=1e-6)


def test_numbers_go_where_they_gain_and_no_more_than_there_may_be():
    """Of two layers one has nothing to learn."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False))
    x = torch.randn(64, 16)
    y = model(x).detach()

    def objective(module, batch):
        return (module(batch[0]) - batch[1]).square().sum(1) / 2, len(batch[0])

    data = [(a[None], (b + c)[None]) for a, b, c in zip(x, y, x @ torch.randn(16, 4) @ torch.randn(4, 16) / 8)]
    units = auto.planned_units(model)
    table = auto.table(model, units, auto.sweep(model, data, units, objective))
    for most in (32, 100, 400):
        plan = auto.chosen(table, {"values": most})
        assert set(plan) <= set(units)
        with trained(model, plan) as t:
            assert 0 < t.count <= most
    with pytest.raises(BudgetError, match="values of 32 at least"):
        auto.chosen(table, {"values": 8})


def test_chance_gains_nothing():
    """Gradients without a common part: what one half says helps the other half in the mean not at all."""
    model, unit = nn.Linear(64, 64), None
    unit = auto.planned_units(model)["weight"]
    draw = torch.Generator().manual_seed(0)
    noise = auto.Swept(*({"weight": torch.randn(64, 64, generator=draw)} for _ in range(2)))
    same = auto.Swept(noise.first, noise.first)
    (method,) = Option.parse("lora_ga rank=8", trained=True).steps
    chance, signal = (auto.gain(method, unit, model.weight.detach(), each, 0)[0] for each in (noise, same))
    assert abs(chance) < 0.15 * signal


def test_a_method_that_asks_for_a_gradient_is_given_one(tmp_path):
    """Else it would be plain LoRA without a word."""
    words = {"data": None, "tokens": 32, "samples": 8, "test_samples": 2, "loop": Loop(steps=3, batch=4, rate=0.01)}
    found = {name: adapt("demo", tmp_path / name, method=f"{name} rank=2", **words).receipt for name in ("lora", "lora_ga")}
    assert "sweeping" in found["lora_ga"]["stages"] and "sweeping" not in found["lora"]["stages"]
    assert found["lora_ga"]["losses"][0] == found["lora"]["losses"][0]  # both begin at the base
    assert found["lora_ga"]["losses"][2] != found["lora"]["losses"][2]
