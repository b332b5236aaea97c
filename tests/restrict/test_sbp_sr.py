"""Stable sensitivity pruning: a hundred layers train at the edge of chaos with rescaling, and not without, nor off the edge."""

import torch
from torch import nn

from modicum.train.scoring import scored
from modicum.train.trained import trained


def learnt(plan, depth=100, width=32, steps=25):
    torch.manual_seed(0)
    x = torch.randn(64, width)
    y = (x[:, 0] > 0).long()
    model = nn.Sequential(*[layer for _ in range(depth) for layer in (nn.Linear(width, width, bias=False), nn.Tanh())], nn.Linear(width, 2))
    loss_of = lambda: nn.functional.cross_entropy(model(x), y)
    with trained(model, {"*": "dense", **{f"{2 * place}.weight": plan for place in range(depth)}}) as t:
        scored(t, loss_of)
        left = [int((t.weight(f"{2 * place}.weight") != 0).sum()) for place in range(depth)]
        optimizer = torch.optim.Adam(t.parameters(), lr=1e-3)
        for _ in range(steps):
            loss = loss_of()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            t.revise(optimizer)
        return loss.item(), left


def test_a_hundred_sparse_layers_train_on_the_edge_only():
    edge, left = learnt("sbp_sr keep=0.3 gain=1.0")
    assert min(left) > 0 and edge < 0.66
    plain, _ = learnt("sbp_sr keep=0.3 gain=1.0 rescaled=false")
    off, _ = learnt("sbp_sr keep=0.3 gain=0.5")
    assert plain > edge + 0.03 and off > edge + 0.03


def test_the_scaling_brings_back_the_sum_of_squares():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(32, 32, bias=False)), torch.randn(8, 32)
    with trained(model, "sbp_sr keep=0.3 gain=0") as t:
        before = t.weight("0.weight").detach().norm()
        scored(t, lambda: model(x).square().sum())
        torch.testing.assert_close(t.weight("0.weight").detach().norm(), before)
