"""BitFit's claim: biases alone, a hundredth of the numbers, learn a new domain."""

import pytest
import torch
from torch import nn

from modicum.core.errors import SettingError
from modicum.train.finding import planned


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_biases_alone_learn_a_shifted_domain(learn, seed):
    """What is asked is what the network knew, of inputs that stand elsewhere now: LoRA at as many numbers does worse."""
    torch.manual_seed(seed)
    known = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 8))
    x, away = torch.randn(512, 32), torch.randn(32)
    y = known(x).detach()
    start = nn.functional.mse_loss(known(x + away), y).item()
    losses = {plan: learn(known, plan, x + away, y, seed=seed) for plan in ("bitfit", "lora rank=1")}
    assert losses["bitfit"][1] == 64 + 8 < losses["lora rank=1"][1] == 96 + 72
    assert losses["bitfit"][0] < 0.05 * start and losses["bitfit"][0] < losses["lora rank=1"][0]


def test_a_model_without_biases_has_none_to_train():
    with pytest.raises(SettingError, match="'bitfit' must find what it trains in this model, finds none"):
        planned(nn.Sequential(nn.Linear(8, 4, bias=False)), "bitfit")
