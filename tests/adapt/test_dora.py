"""DoRA's claim: with lengths and directions apart it learns what LoRA of more trained numbers does not."""

import pytest
import torch
from torch import nn


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_lengths_and_directions_are_learnt_apart(learn, seed):
    losses, counts = {}, {}
    for method in ("lora rank=3", "dora rank=2"):
        torch.manual_seed(seed)
        model, x = nn.Sequential(nn.Linear(32, 32, bias=False)), torch.randn(512, 32)
        turned = model[0].weight.detach() + torch.randn(32, 2) @ torch.randn(2, 32) / 16
        target = turned * (torch.rand(32, 1) * 1.5 + 0.25)
        losses[method], counts[method], _ = learn(model, method, x, x @ target.T, steps=400, seed=seed)
    lora, mine = losses.values()
    assert counts == {"lora rank=3": 192, "dora rank=2": 160}
    assert mine < 0.5 * lora


def test_rows_of_zeros_stay(learn):
    model = nn.Sequential(nn.Linear(8, 4, bias=False))
    model[0].weight.data[1] = 0
    _, _, weights = learn(model, "dora rank=2", torch.randn(16, 8), torch.randn(16, 4), steps=3)
    assert bool(weights["0.weight"].isfinite().all())
