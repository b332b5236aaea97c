"""APET's claim: arbitrary few numbers are enough, and the larger the model, the less it matters which they are."""

import pytest
import torch
from torch import nn

from modicum.train.trained import trained


def test_the_gap_to_full_fine_tuning_shrinks_with_the_model(learn):
    gaps = {}
    for width in (8, 256):
        found = []
        for seed in range(3):
            losses = {}
            for method in ("shift", "lora rank=1", "apet keep=0.1"):
                torch.manual_seed(seed)
                model, x = nn.Sequential(nn.Linear(8, width), nn.Tanh(), nn.Linear(width, 1)), torch.randn(128, 8)
                y = torch.sin(x[:, :1]) + 0.5 * x[:, 1:2]
                losses[method], _, _ = learn(model, {"*.weight": method}, x, y, steps=200, lr=0.01, seed=seed)
            found.append(losses["apet keep=0.1"] - losses["shift"])
        gaps[width] = sum(found) / 3
    assert gaps[256] < 0.2 * gaps[8]


@pytest.mark.parametrize("keep", [0.01, 0.5])
def test_a_file_holds_entries_and_no_places(keep):
    with trained(nn.Sequential(nn.Linear(20, 30)), f"apet keep={keep}") as t:
        assert t.count == round(600 * keep) and t.forms()["0.weight"].nbytes == 4 * t.count
