"""The FISH mask's claim: entries that the gradient names learn far more than as many at random, or LoRA's numbers."""

import pytest
import torch
from torch import nn


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_sparse_change_is_found(learn, seed):
    losses = {}
    for method in ("lora rank=1", "apet keep=0.04", "fish keep=0.04"):
        torch.manual_seed(seed)
        model, x = nn.Sequential(nn.Linear(48, 48, bias=False)), torch.randn(2048, 48)
        target = model[0].weight.detach().clone()
        target.view(-1)[torch.randperm(2304)[:60]] += 0.5
        losses[method], count, weights = learn(model, method, x, x @ target.T, steps=200, seed=seed)
        assert count == (96 if method.startswith("lora") else 92)
    assert losses["fish keep=0.04"] < 0.01 * min(losses["lora rank=1"], losses["apet keep=0.04"])
