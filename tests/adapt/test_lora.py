"""LoRA's claim: with few trained numbers it reaches what full fine-tuning reaches where the change is of low rank."""

import torch
from torch import nn

from modicum.adapt import Lora
from modicum.train.trained import trained


def test_a_change_of_low_rank_is_learnt():
    draw = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 24, bias=False))
    change = torch.randn(24, 2, generator=draw) @ torch.randn(2, 24, generator=draw) / 24
    x = torch.randn(512, 24, generator=draw)
    y = x @ (model[0].weight.detach() + change).T
    errors = {}
    for rank in (1, 2):
        with trained(model, f"lora rank={rank}") as t:
            optimizer = torch.optim.Adam(t.parameters(), lr=0.02)
            for _ in range(400):
                loss = (model(x) - y).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            errors[rank], count = loss.item(), t.count
        assert count == rank * 48
    # At rank one the best that can be had is the change without its first direction.
    rest = float((x @ (change - _first(change)).T).square().mean())
    assert errors[2] < 1e-3 * rest and 0.9 * rest < errors[1] < 1.5 * rest


def _first(change):
    u, s, v = torch.linalg.svd(change)
    return s[0] * u[:, :1] @ v[:1]


def test_strength_is_alpha_over_the_rank_that_was_asked_for():
    assert Lora(rank=8, alpha=16.0).scale(3) == 2.0
