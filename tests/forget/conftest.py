"""A small net trained on points of four classes, of which some are to be forgotten, and one that never saw them."""

import pytest
import torch
from torch import nn
from transformers import AutoTokenizer

from modicum.models.located import DEMO


def points(count, seed):
    chance = torch.Generator().manual_seed(seed)
    y = torch.randint(4, (count,), generator=chance)
    centres = torch.tensor([[2.0, 0], [-2, 0], [0, 2], [0, -2]])
    return centres[y] + 0.5 * torch.randn(count, 2, generator=chance), y


def rows(x, y):
    return [(x[place : place + 1], y[place : place + 1]) for place in range(len(y))]


def trained(x, y, seed):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net.eval()


@pytest.fixture(scope="session")
def case():
    """Net, rows to forget (all of class 3), rows to retain, and the net that never saw them."""
    x, y = points(160, 0)
    gone = y == 3
    return trained(x, y, 0), rows(x[gone], y[gone]), rows(x[~gone], y[~gone]), trained(x[~gone], y[~gone], 1)


@pytest.fixture(scope="session")
def tokenizer():
    return AutoTokenizer.from_pretrained(DEMO)
