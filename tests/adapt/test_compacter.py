"""Compacter's claim: coarse factors are shared over layers, so a layer costs less than LoRA's smallest rank, and structure that fits is learnt."""

import pytest
import torch
from torch import nn

from modicum.delta import Delta
from modicum.train.trained import trained


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_kronecker_change_is_learnt_with_as_many_numbers_as_lora_has(learn, seed):
    losses = {}
    for method in ("lora rank=1", "compacter parts=4"):
        torch.manual_seed(seed)
        model, x = nn.Sequential(nn.Linear(32, 32, bias=False)), torch.randn(512, 32)
        change = torch.kron(torch.randn(4, 4), torch.randn(8, 1) @ torch.randn(1, 8)) / 16
        losses[method], count, _ = learn(model, method, x, x @ (model[0].weight.detach() + change).T, steps=400, seed=seed)
        assert count == (64 if method.startswith("lora") else 64 + 4**3)
    assert losses["compacter parts=4"] < 1e-3 * losses["lora rank=1"]


def test_layers_share_one_set_of_coarse_factors(tmp_path):
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 24), nn.Linear(24, 6))
    with trained(model, "compacter parts=4") as t:
        assert t.count == (8 + 16) + (16 + 24) + (24 + 6) + 4**3 + 2**3
        for parameter in t.parameters():
            parameter.data.normal_()
        delta, wanted = t.delta(), {name: t.weight(name).detach() for name in t.places}
    assert len(delta.shared) == 4 + 2
    delta.save(tmp_path)
    for name, made in Delta.load(tmp_path).on(lambda name: model.get_parameter(name).detach()):
        assert torch.equal(made, wanted[name])


def test_whole_fine_factors_are_a_phm_layer(learn):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(16, 16, bias=False)), torch.randn(256, 16)
    change = torch.kron(torch.randn(2, 2), torch.randn(8, 8)) / 8
    loss, count, _ = learn(model, "compacter parts=2 rank=0", x, x @ (model[0].weight.detach() + change).T, steps=400)
    assert count == 16 * 16 // 2 + 2**3 and loss < 1e-4
