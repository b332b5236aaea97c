"""RsLoRA's claim: what an update changes does not fall with the rank, as it does under LoRA's own scale."""

import pytest
import torch
from torch import nn


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_high_ranks_learn_as_fast_as_low_ones(learn, seed):
    torch.manual_seed(seed)
    x, target = torch.randn(512, 64), torch.randn(64, 64) / 8
    moved = {}
    for method in ("lora", "rslora"):
        for rank in (4, 64):
            model = nn.Sequential(nn.Linear(64, 64, bias=False))
            before = model[0].weight.detach().clone()
            _, _, weights = learn(model, f"{method} rank={rank} alpha=4.0", x, x @ (before + target).T, steps=3, lr=1e-3, seed=seed)
            moved[method, rank] = float((weights["0.weight"] - before).norm())
    assert moved["lora", 64] < 0.6 * moved["lora", 4]
    assert moved["rslora", 64] > 1.5 * moved["rslora", 4] * (moved["lora", 64] / moved["lora", 4])
    assert moved["rslora", 64] > 0.9 * moved["rslora", 4]
