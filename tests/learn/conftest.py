"""Three tasks of two classes each for small nets: pictures of bars, told by where they stand."""

import pytest
import torch
from torch import nn

from modicum.learn.tasks import Task


def pictures(classes, count, seed, names=None):
    """Pictures (1, 1, 6, 6) with a bright row or column under noise, one row each, under names of their own."""
    chance = torch.Generator().manual_seed(seed)
    rows = []
    for number in range(count):
        label = classes[number % len(classes)]
        x = 0.3 * torch.randn(1, 1, 6, 6, generator=chance)
        if label < 3:
            x[0, 0, 2 * label] += 1
        else:
            x[0, 0, :, 2 * (label - 3)] += 1
        rows.append((x, torch.tensor([label if names is None else names[number % len(classes)]])))
    return rows


class Net(nn.Module):
    """A convolution, blocks of two layers, a head of six classes."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(1, 3, 3, padding=1), nn.ReLU()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(108, 108), nn.ReLU()) for _ in range(2))
        self.head = nn.Linear(108, 6)

    def forward(self, x):
        x = self.relu(self.conv(x)).flatten(1)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="session")
def tasks():
    return [
        Task(f"{one} or {other}", pictures((one, other), 60, one), pictures((one, other), 40, 100 + one))
        for one, other in ((0, 3), (1, 4), (2, 5))
    ]


@pytest.fixture(scope="session")
def opposed():
    """Three tasks whose bars have the same two classes, the other way round in the second."""
    sides = (((0, 3), (0, 1)), ((1, 4), (1, 0)), ((2, 5), (0, 1)))
    return [Task(f"{bars}", pictures(bars, 60, bars[0], names), pictures(bars, 40, 100 + bars[0], names)) for bars, names in sides]
