"""IA3's claim: where activations are to be rescaled, one number per output does what a product of rank one cannot."""

import pytest
import torch
from torch import nn


@pytest.mark.parametrize("side", ["outputs", "inputs"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rescaling_is_learnt_with_fewer_numbers_than_lora_of_rank_one(learn, side, seed):
    losses = {}
    for method in ("lora rank=1", f"ia3 side={side}"):
        torch.manual_seed(seed)
        model, x = nn.Sequential(nn.Linear(24, 32, bias=False)), torch.randn(256, 24)
        weight = model[0].weight.detach()
        target = weight * (torch.rand(32)[:, None] * 2 if side == "outputs" else torch.rand(24) * 2)
        losses[method], count, _ = learn(model, method, x, x @ target.T, steps=300)
        assert count == (56 if method.startswith("lora") else {"outputs": 32, "inputs": 24}[side])
    lora, mine = losses.values()
    assert mine < 0.01 * lora
