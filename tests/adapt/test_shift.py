"""BitFit's claim: biases alone, a hundredth of the numbers, learn a new domain; on all weights it is full fine-tuning."""

import pytest
import torch
from torch import nn


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_biases_alone_learn_a_shifted_domain(learn, seed):
    """What is asked is what the network knew, of inputs that stand elsewhere now: LoRA at as many numbers does worse."""
    torch.manual_seed(seed)
    known = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 8))
    x, away = torch.randn(512, 32), torch.randn(32)
    y = known(x).detach()
    start = nn.functional.mse_loss(known(x + away), y).item()
    losses = {
        plan: learn(known, {pattern: plan}, x + away, y, seed=seed) for pattern, plan in (("*.bias", "shift"), ("*.weight", "lora rank=1"))
    }
    assert losses["shift"][1] == 64 + 8 < losses["lora rank=1"][1] == 96 + 72
    assert losses["shift"][0] < 0.05 * start and losses["shift"][0] < losses["lora rank=1"][0]


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
