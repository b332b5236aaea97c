"""ETHER's claim: few numbers, and learning rates that ruin LoRA do not ruin it, since a reflection moves a weight no further."""

import math

import pytest
import torch
from torch import nn


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_holds_over_learning_rates_that_ruin_lora(learn, seed):
    losses = {}
    for method in ("lora rank=2", "ether"):
        for lr in (0.03, 3.0):
            torch.manual_seed(seed)
            model, x = nn.Sequential(nn.Linear(24, 24, bias=False)), torch.randn(256, 24)
            u = nn.functional.normalize(torch.randn(24), dim=0)
            weight = model[0].weight.detach().clone()
            target = weight - 2 * torch.outer(u, u @ weight)
            losses[method, lr], count, weights = learn(model, method, x, x @ target.T, steps=200, lr=lr, seed=seed)
            assert count == (24 if method == "ether" else 96)
            if method == "ether":
                assert math.isclose(float(weights["0.weight"].norm()), float(weight.norm()), rel_tol=1e-5)
    assert losses["ether", 0.03] < 1e-3
    assert losses["ether", 3.0] < 2 and losses["lora rank=2", 3.0] > 100 * losses["ether", 3.0]
