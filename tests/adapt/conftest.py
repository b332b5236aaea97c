"""One short loop for all adapters' claims."""

import pytest
import torch
from torch import nn

from modicum.train.trained import trained


@pytest.fixture
def learn():
    """``learn(model, plan, x, y)`` gives the last loss, the count of trained numbers and the weights by unit."""

    def run(model, plan, x, y, *, steps=200, lr=0.02, seed=0, loss=nn.functional.mse_loss):
        with trained(model, plan, total=steps, seed=seed) as t:
            optimizer = torch.optim.Adam(t.parameters(), lr=lr)
            for _ in range(steps):
                found = loss(model(x), y)
                total = found if (penalty := t.penalty()) is None else found + penalty
                optimizer.zero_grad()
                total.backward()
                optimizer.step()
                t.revise(optimizer)
            return loss(model(x), y).item(), t.count, {name: t.weight(name).detach() for name in t.places}

    return run
