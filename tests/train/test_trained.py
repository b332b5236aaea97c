"""Weights made of trained numbers for a while: what is chosen, and that nothing is left behind."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from modicum.adapt._family import Adapter
from modicum.core.errors import SettingError
from modicum.core.option import Option
from modicum.core.parametrization import Revision, State
from modicum.core.unit import Site, Stats, Unit
from modicum.forms import Dense, Integer
from modicum.quantize import Nearest
from modicum.testing import zoo
from modicum.train.trained import trained


def test_one_option_means_the_blocks_without_tables_and_vectors():
    model, _ = zoo.build("llama")
    with trained(model, "lora rank=2") as t:
        assert len(t.places) == 21 and all(".layers." in name and "norm" not in name for name in t.places)
    with trained(model, {"*norm.weight": "lora rank=1", "lm_head": "lora rank=2"}) as t:
        assert {place.unit.shape[0] for place in t.places.values()} >= {1} and "lm_head.weight" in t.places


@pytest.mark.parametrize("plan", [{"nothing": "lora"}, "nearest bits=4", "nearest bits=4 | lora", {"*": "lora bogus=1"}])
def test_a_plan_that_says_nothing_is_told(plan):
    with pytest.raises(SettingError):
        trained(zoo.build("llama")[0], plan)


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "gpt2", "mamba", "t5", "bert", "resnet", "whisper"])
def test_nothing_is_left_behind(name):
    model, batches = zoo.build(name)
    before, places = copy.deepcopy(model.state_dict()), {part: dict(vars(part)) for part in model.modules()}
    asked = [parameter.requires_grad for parameter in model.parameters()]
    with torch.no_grad():
        answer = _tensor(model(**batches[0]))
        with pytest.raises(ZeroDivisionError), trained(model, "lora rank=2") as t:
            torch.testing.assert_close(_tensor(model(**batches[0])), answer, rtol=1e-4, atol=1e-5)
            assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()), "what is stored is listed"
            for parameter in t.parameters():
                parameter.fill_(0.1)
            assert not torch.equal(_tensor(model(**batches[0])), answer)
            raise ZeroDivisionError
        assert torch.equal(_tensor(model(**batches[0])), answer)
    for part, was in places.items():
        assert vars(part).keys() == was.keys() and all(vars(part)[key] is value for key, value in was.items() if key != "_flat_weights")
    assert [parameter.requires_grad for parameter in model.parameters()] == asked


def _tensor(output):
    return next(value for value in output.values() if isinstance(value, torch.Tensor))


def test_a_delta_trains_over_codes():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(16, 8)), torch.randn(4, 16)
    codes = _codes(model[0].weight.detach())
    with trained(model, "lora rank=2", forms={"0.weight": codes}) as t:
        torch.testing.assert_close(model(x), codes.product(x) + model[0].bias)
        model(x).square().sum().backward()
        assert all(parameter.grad is not None for parameter in t.parameters())


def _codes(weight):
    unit = Unit("w", "w", "", "linear", (8, 16), (8, 16), torch.float32)
    made = Nearest(bits=3, group=0).apply(Site("w", "unit", (unit,)), {"w": Stats()}, {"w": Dense(weight)}).forms["w"]
    assert isinstance(made, Integer)
    return made


def test_activations_may_be_computed_twice():
    """Gradient checkpointing runs the forward again in the backward pass: the same weights are made there."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 8), nn.Conv1d(4, 4, 3)), torch.randn(2, 4, 8)
    found = []
    for twice in (False, True):
        with trained(model, {"0.weight": "lora rank=2", "1.weight": "rigl keep=0.5"}) as t:
            made = checkpoint(model, x, use_reentrant=False) if twice else model(x)
            made.square().sum().backward()
            found.append([parameter.grad for parameter in t.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found))


def test_tied_weights_are_one():
    model, batches = zoo.build("gpt2")
    with trained(model, {"transformer.wte.weight": "lora rank=2"}) as t:
        t.parameters()[0].data.fill_(0.1)
        made, ids = t.weight("transformer.wte.weight"), batches[0]["input_ids"]
        assert torch.equal(model.transformer.wte(ids), made[ids])
        hidden = torch.randn(1, 2, made.shape[1])
        torch.testing.assert_close(model.lm_head(hidden), hidden @ made.T)


@dataclass(frozen=True, kw_only=True)
class Shrinking(Adapter):
    """A vector of shared trained numbers, a vector of its own that loses an entry with each update, and their sum on the diagonal."""

    def common(self, shapes, chance, seed):
        return State({"both": torch.ones(1, 4)})

    def begin(self, start):
        return State({"own": torch.arange(1.0, 5.0)}, common=start.common, base=start.base)

    def weight(self, base, state, step):
        return base + torch.diag(torch.nn.functional.pad(state["own"], (0, 4 - len(state["own"]))) + state["both"][0])

    def form(self, state):
        return state.base

    def revise(self, states, gradients, budget, step):
        return Revision(
            {name: state.having({"own": state["own"].detach()[1:].clone()}) for name, state in states.items()},
            {name: {"own": torch.arange(1, len(state["own"]))} for name, state in states.items()},
        )


def test_a_tensor_may_change_its_shape_while_somebody_holds_the_loss():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with trained(model, Option((Shrinking(),))) as t:
        optimizer, losses = torch.optim.Adam(t.parameters(), lr=0.01), []
        for left in (4, 3, 2):
            assert [len(place.state["own"]) for place in t.places.values()] == [left, left]
            losses.append(model(torch.ones(2, 4)).square().sum())
            optimizer.zero_grad()
            losses[-1].backward()
            optimizer.step()
            moments = optimizer.state[t.places["0.weight"].state.trained["own"]]["exp_avg"].clone()
            t.revise(optimizer)
            assert torch.equal(optimizer.state[t.places["0.weight"].state.trained["own"]]["exp_avg"], moments[1:])
            assert {id(each) for group in optimizer.param_groups for each in group["params"]} == {id(each) for each in t.parameters()}
        one, two = (place.state.common for place in t.places.values())
        assert one is two and list(t.delta().shared) == [f"{Shrinking()}: both"]
