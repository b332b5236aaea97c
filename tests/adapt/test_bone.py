"""Bone's claim: at equal numbers its loss is at least as low as LoRA's and PiSSA's where blocks of a row change alike.

(Of a change that is random throughout, LoRA of equal numbers finds more: it may choose its directions.)
"""

import pytest
import torch
from torch import nn

from modicum.forms.affine import affine


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_loss_is_no_higher_than_theirs_at_equal_numbers(learn, seed):
    losses = {}
    for method in ("lora rank=4", "pissa rank=4", "bone rank=8"):
        torch.manual_seed(seed)
        model, x = nn.Sequential(nn.Linear(32, 32, bias=False)), torch.randn(512, 32)
        weight = model[0].weight.detach()
        target = affine(weight, 0.1 * torch.randn(4, 8, 8)) + 0.01 * torch.randn(32, 32)
        losses[method], count, _ = learn(model, method, x, x @ target.T, steps=300, lr=0.01, seed=seed)
        assert count == 256
    assert losses["bone rank=8"] < 0.5 * min(losses["lora rank=4"], losses["pissa rank=4"])
