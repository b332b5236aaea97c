"""SaRA's claim: the smallest entries, which do nothing for what a network knows, are enough to adapt it."""

import pytest
import torch
from torch import nn

from modicum.train.trained import trained


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_small_entries_adapt_and_large_ones_stay(learn, seed):
    """A pretrained weight most of whose entries are near zero; what is new lies there. LoRA has as many numbers."""
    losses = {}
    for method in ("lora rank=6", "sara keep=0.25"):
        torch.manual_seed(seed)
        model, x = nn.Sequential(nn.Linear(48, 48, bias=False)), torch.randn(512, 48)
        weight, idle = model[0].weight.detach(), torch.rand(48, 48) < 0.25
        weight.masked_fill_(idle, 0.0).add_(0.001 * torch.randn(48, 48))
        before, target = weight.clone(), weight + 0.1 * torch.randn(48, 48) * idle
        losses[method], count, weights = learn(model, method, x, x @ target.T, steps=200, lr=0.005, seed=seed)
        assert count == 576
    lora, mine = losses.values()
    assert mine < 0.25 * lora
    assert int((weights["0.weight"] != before).sum()) <= 576


def test_halfway_what_has_become_large_settles():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(16, 16, bias=False)), torch.randn(128, 16)
    with trained(model, "sara keep=0.5 strength=0.0", total=20) as t:
        optimizer = torch.optim.Adam(t.parameters(), lr=0.02)
        for step in range(20):
            (model(x) - x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            t.revise(optimizer)
            if step == 9:
                settled, halfway = t.places["0.weight"].state["settled"], t.weight("0.weight").detach()
        places, now = t.places["0.weight"].state["places"], t.weight("0.weight").detach()
    assert 0 < int(settled.sum()) < len(settled)
    moved = (now != halfway).reshape(-1)[places]
    assert not bool(moved[settled].any()) and bool(moved[~settled].any())
