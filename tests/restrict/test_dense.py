"""Dense training is plain training, to the bit."""

import copy

import torch
from torch import nn

from modicum.train.trained import trained


def test_it_is_plain_training_to_the_bit():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12, bias=False), nn.Tanh(), nn.Linear(12, 3, bias=False))
    plain, x, y = copy.deepcopy(model), torch.randn(32, 8), torch.randint(3, (32,))
    with trained(model, "dense", total=10) as t:
        for module, optimizer in ((model, torch.optim.Adam(t.parameters(), 0.01)), (plain, torch.optim.Adam(plain.parameters(), 0.01))):
            for _ in range(10):
                loss = nn.functional.cross_entropy(module(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        assert all(torch.equal(t.weight(name), plain.get_parameter(name)) for name in t.places)
