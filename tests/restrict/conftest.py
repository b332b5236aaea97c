"""A problem in which few inputs matter, and a loop that trains on it."""

import pytest
import torch
from torch import nn

from modicum.train.scoring import scored
from modicum.train.trained import trained


class Problem:
    """Of 64 inputs four matter; ``learn`` trains a net of two layers under a plan and gives its last loss, and its weights by name."""

    def __init__(self, seed):
        draw = torch.Generator().manual_seed(seed)
        self.seed, self.x = seed, torch.randn(512, 64, generator=draw)
        self.y = self.x[:, :4] @ torch.randn(4, 8, generator=draw)

    def learn(self, plan, steps=150, each=None):
        torch.manual_seed(self.seed)
        model = nn.Sequential(nn.Linear(64, 16, bias=False), nn.Tanh(), nn.Linear(16, 8, bias=False))
        loss_of = lambda: (model(self.x) - self.y).square().mean()
        with trained(model, plan, total=steps, seed=self.seed, scratch=True) as t:
            scored(t, loss_of)
            optimizer = torch.optim.Adam(t.parameters(), lr=0.02)
            for number in range(steps):
                loss = loss_of()
                if (penalty := t.penalty()) is not None:
                    loss = loss + penalty
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                t.revise(optimizer)
                if each is not None:
                    each(number + 1, t, optimizer)
            return loss_of().item(), {name: t.weight(name).detach() for name in t.places}


@pytest.fixture(params=[0, 1, 2])
def problem(request):
    return Problem(request.param)
