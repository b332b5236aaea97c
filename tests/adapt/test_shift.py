"""On weights it is full fine-tuning, on what a plan names that alone."""

import torch
from torch import nn


def test_on_weights_it_is_what_full_fine_tuning_gives(learn):
    torch.manual_seed(0)
    model, twin = nn.Sequential(nn.Linear(8, 4, bias=False)), nn.Linear(8, 4, bias=False)
    twin.weight.data = model[0].weight.detach().clone()
    x, y = torch.randn(32, 8), torch.randn(32, 4)
    _, count, weights = learn(model, "shift", x, y, steps=20, lr=0.01)
    optimizer = torch.optim.Adam(twin.parameters(), lr=0.01)
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.mse_loss(twin(x), y).backward()
        optimizer.step()
    assert count == 32
    torch.testing.assert_close(weights["0.weight"], twin.weight.detach())


def test_norms_are_tuned_by_name(learn):
    model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 2))
    x = torch.randn(64, 8)
    _, count, weights = learn(model, {"1.*": "shift"}, x, torch.randn(64, 2), steps=5)
    assert count == 32 and set(weights) == {"1.weight", "1.bias"}
