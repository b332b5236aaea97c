"""Top-k fine-tuning moves the largest entries and no others."""

import torch
from torch import nn


def test_only_the_largest_entries_move(learn):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(16, 16, bias=False)), torch.randn(256, 16)
    before = model[0].weight.detach().clone()
    largest = before.abs() >= before.abs().flatten().sort().values[-26]
    loss, count, weights = learn(model, "topk keep=0.1", x, x @ (before + 0.3 * largest).T)
    assert count == 26 and torch.equal(weights["0.weight"] != before, largest) and loss < 1e-3
