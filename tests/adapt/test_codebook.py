"""GRACE's claim: inputs near a key get its value, and all others stay the same bits."""

import torch
from torch import nn

from modicum.delta import Beside, Delta
from modicum.train.changed import changed


def test_only_what_is_near_a_key_changes():
    torch.manual_seed(0)
    net = nn.Sequential(nn.ModuleList([nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(2)]))
    block, x = net[0][1], torch.randn(5, 6)
    before = block(x).detach()
    entries = {"keys": before[2:3] + 0.01, "values": torch.ones(1, 6), "radii": torch.tensor([0.1])}
    with changed(net, Delta({}, asides=(Beside("0.1", "codebook", entries),))):
        after = block(x)
    assert torch.equal(after[[0, 1, 3, 4]], before[[0, 1, 3, 4]]) and torch.allclose(after[2], before[2] + 1)
