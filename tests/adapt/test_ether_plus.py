"""ETHER+'s claim: two vectors per side, a start at the base, and a weight that moves no further than four whatever the learning rate."""

import pytest
import torch
from torch import nn


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_holds_over_learning_rates_that_ruin_lora(learn, seed):
    losses = {}
    for method in ("lora rank=2", "ether_plus"):
        for lr in (0.03, 1.0):
            torch.manual_seed(seed)
            model, x = nn.Sequential(nn.Linear(24, 24, bias=False)), torch.randn(256, 24)
            weight = model[0].weight.detach().clone()
            u, v = (nn.functional.normalize(torch.randn(24), dim=0) for _ in range(2))
            target = (torch.eye(24) - torch.outer(u, u) + torch.outer(v, v)) @ weight
            losses[method, lr], count, weights = learn(model, method, x, x @ target.T, steps=300, lr=lr, seed=seed)
            assert count == 96
            if method == "ether_plus":
                assert float((weights["0.weight"] - weight).norm()) < 4 * float(weight.norm())
    assert losses["ether_plus", 0.03] < 0.05 * float((x @ (target - weight).T).square().mean())
    assert losses["ether_plus", 1.0] < 2 and losses["lora rank=2", 1.0] > 10 * losses["ether_plus", 1.0]
