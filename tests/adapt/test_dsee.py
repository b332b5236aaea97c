"""DSEE's claim: a product and a few entries where the weight's own decomposition leaves most beat a product of as many numbers."""

import pytest
import torch
from torch import nn


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_product_and_entries_learn_what_a_product_alone_does_not(learn, seed):
    losses, counts = {}, {}
    for method in ("lora rank=3", "dsee rank=2 keep=0.025"):
        torch.manual_seed(seed)
        model, x = nn.Sequential(nn.Linear(48, 48, bias=False)), torch.randn(512, 48)
        weight = model[0].weight.detach()
        spikes = torch.randperm(2304)[:58]
        weight.view(-1)[spikes] += torch.randn(58).sign()
        change = torch.randn(48, 2) @ torch.randn(2, 48) / 20
        change.view(-1)[spikes] += 0.5 * torch.randn(58)
        losses[method], counts[method], _ = learn(model, method, x, x @ (weight + change).T, steps=400, seed=seed)
    lora, mine = losses.values()
    assert counts == {"lora rank=3": 288, "dsee rank=2 keep=0.025": 250}
    assert mine < 0.5 * lora
