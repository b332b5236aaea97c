"""FLoRA's claim: on convolutions a core with a factor per side beats a low-rank change of the flattened kernel at equal trained numbers."""

import pytest
import torch
from torch import nn

from modicum.forms.tucker import expanded
from modicum.train.trained import trained


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_kernels_change_along_their_sides(learn, seed):
    losses = {}
    for method in ("lora rank=2", "flora rank=4 kernel=3"):
        torch.manual_seed(seed)
        model, x = nn.Sequential(nn.Conv2d(12, 16, 3, bias=False)), torch.randn(32, 12, 8, 8)
        other = nn.Conv2d(12, 16, 3, bias=False)
        change = expanded(
            torch.randn(4, 4, 3, 3), [torch.linalg.qr(torch.randn(side, rank)).Q for side, rank in ((16, 4), (12, 4), (3, 3), (3, 3))]
        )
        other.weight.data = model[0].weight.detach() + 0.3 * change.reshape(16, 12, 3, 3)
        losses[method], count, _ = learn(model, method, x, other(x).detach(), steps=300, lr=0.01, seed=seed)
        assert count == (2 * (16 + 108) if method.startswith("lora") else 4 * 4 * 9 + 4 * 16 + 4 * 12 + 2 * 9)
    assert losses["flora rank=4 kernel=3"] < 0.2 * losses["lora rank=2"]


def test_its_count_is_that_of_core_and_factors():
    model = nn.Sequential(nn.Conv2d(8, 10, (3, 5)), nn.Conv1d(10, 6, 7), nn.Linear(6, 9))
    with trained(model, "flora rank=4 kernel=2") as t:
        assert t.count == (4 * 4 * 4 + 4 * 18 + 2 * 8) + (4 * 4 * 2 + 4 * 16 + 2 * 7) + (4 * 4 + 4 * 15)
