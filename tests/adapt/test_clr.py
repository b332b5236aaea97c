"""CLR's claim: a frozen net is read anew by a small map per channel, which begins as the identity."""

import torch
from torch import nn

from modicum.train.trained import trained


def test_maps_begin_as_the_identity_and_learn_what_a_head_cannot():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
    x = torch.randn(32, 1, 8, 8)
    shifted = torch.roll(net(x).detach(), 1, dims=2)
    before = net(x)
    with trained(net, "clr", total=150) as t:
        assert torch.allclose(net(x), before, atol=1e-6) and t.count == 2 * 4 * 9
        optimizer = torch.optim.Adam(t.parameters(), lr=0.02)
        for _ in range(150):
            optimizer.zero_grad()
            loss = (net(x) - shifted)[:, :, 1:].square().mean()
            loss.backward()
            optimizer.step()
    assert loss < 0.05 * (before - shifted)[:, :, 1:].square().mean() and torch.equal(net(x), before)
