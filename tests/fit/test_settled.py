"""Weights that a module computes at each call: what multiplies is treated, written and loaded back, and the caller's module stays."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import modicum


class _Scaled(nn.Module):
    factor = 1.5

    def forward(self, weight):
        return weight * self.factor


class _Drawn(nn.Module):
    def forward(self, weight):
        return weight * torch.rand(())


class _Whiles(nn.Module):
    """Its forward sets what its weight depends on."""

    def __init__(self):
        super().__init__()
        self.inner = _own(nn.Linear(32, 32))

    def forward(self, inputs):
        part = self.inner.parametrizations.weight[0]
        part.factor = 2.0
        outputs = self.inner(inputs)
        part.factor = 1.5
        return outputs


def _own(layer, part=_Scaled):
    return parametrize.register_parametrization(layer, "weight", part())


def _former(layer, name="weight"):
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        return nn.utils.weight_norm(layer, name)


def _pruned(layer):
    prune.l1_unstructured(layer, "weight", 0.5)
    return prune.random_unstructured(layer, "weight", 0.2)


class _Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = _former(parametrizations.weight_norm(nn.LSTM(32, 32, batch_first=True), "weight_ih_l0"), "weight_hh_l0")

    def forward(self, inputs):
        return self.layer(inputs[:, None].expand(-1, 3, -1))[0]


WAYS = {
    "former weight_norm": lambda: _former(nn.Linear(32, 32)), "weight_norm": lambda: parametrizations.weight_norm(nn.Linear(32, 32)),
    "former spectral_norm": lambda: nn.utils.spectral_norm(nn.Linear(32, 32)),
    "spectral_norm": lambda: parametrizations.spectral_norm(nn.Linear(32, 32)), "mask": lambda: _pruned(nn.Linear(32, 32)),
    "own": lambda: _own(nn.Linear(32, 32)), "two": lambda: parametrizations.weight_norm(_own(nn.Linear(32, 32)), "bias"),
    "recurrent": _Recurrent,
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_the_effective_weight_is_treated_written_and_loaded_back(way, tmp_path):
    torch.manual_seed(0)
    model, data = nn.Sequential(WAYS[way](), nn.ReLU()).eval(), [torch.randn(4, 32) for _ in range(6)]
    state, kinds = {name: value.clone() for name, value in model.state_dict().items()}, [type(part) for part in model.modules()]
    with torch.no_grad():
        before = model(data[0])
    result = modicum.fit(model, method="gptq bits=8 group=0", data=data, out=tmp_path / "out")
    told = result.receipt["coverage"]
    assert told["share"] == 1.0
    assert {row["reason"] for row in told["untreated"]} == {"vector"}
    assert any("its effective weight is what is measured" in event for event in result.receipt["events"])
    with torch.no_grad():
        after = result.model(data[0])
        assert 0 < (after - before).norm() < 0.01 * before.norm()
        loaded = modicum.load(tmp_path / "out", into=nn.Sequential(WAYS[way](), nn.ReLU()))
        assert torch.equal(loaded(data[0]), after)
        assert torch.equal(model(data[0]), before)
    assert [type(part) for part in model.modules()] == kinds
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    loaded.load_state_dict(loaded.state_dict())  # no hook waits for what is gone
    if way == "mask":
        assert bool((loaded[0].weight[state["0.weight_mask"] == 0] == 0).all())


def test_a_full_budget_keeps_outputs_and_zeros_stand_under_a_small_one(tmp_path):
    torch.manual_seed(0)
    model, data = nn.Sequential(_pruned(nn.Linear(64, 64)), nn.ReLU(), nn.Linear(64, 8)).eval(), [torch.randn(8, 64) for _ in range(6)]
    with torch.no_grad():
        assert torch.equal(modicum.fit(model, "1MB", data=data, search_time=0).model(data[0]), model(data[0]))
    made = modicum.fit(model, "7bpw", data=data, search_time=0, menu=("gptq bits=4 group=0", "svd rank=8", "wanda keep=0.3"))
    assert bool((made.model[0].weight[model[0].weight_mask == 0] == 0).all())
    assert made.receipt["sites"][0]["option"] not in ("keep", "svd rank=8")


def test_what_is_no_function_of_the_module_alone_stays_with_a_reason():
    torch.manual_seed(0)
    data = [torch.randn(4, 32) for _ in range(6)]
    for model, why in ((_own(nn.Linear(32, 32), _Drawn), "another weight each time"), (_Whiles(), "depends on more than its value")):
        receipt = modicum.fit(nn.Sequential(model, nn.Linear(32, 4)).eval(), method="nearest bits=4 group=0", data=data).receipt
        assert any(why in event for event in receipt["events"])
        assert "parametrized" in {row["reason"] for row in receipt["coverage"]["untreated"]}
        assert receipt["coverage"]["share"] < 0.2
