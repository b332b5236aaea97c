"""Parameter-efficient sparsity: a task is learnt by few numbers within a mask of the exact density."""

import torch
from torch import nn

from modicum.train.trained import trained


def learnt(problem, steps):
    torch.manual_seed(problem.seed)
    model = nn.Sequential(nn.Linear(64, 16, bias=False), nn.Tanh(), nn.Linear(16, 8, bias=False))
    plain = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(100):
        plain.zero_grad()
        (model(problem.x) - problem.y).square().mean().backward()
        plain.step()
    task = problem.x[:, :4].flip(1) @ torch.linspace(-1, 1, 32).reshape(4, 8)
    with trained(model, "pst keep=0.2 rank=2", total=max(1, steps)) as t:
        assert t.count == 5 * (64 + 16 + 16 + 8)
        optimizer = torch.optim.Adam(t.parameters(), lr=0.02)
        for _ in range(steps):
            optimizer.zero_grad()
            (model(problem.x) - task).square().mean().backward()
            optimizer.step()
            t.revise(optimizer)
        t.step = type(t.step)(1, 1)
        assert sum(form.values for form in t.forms().values()) == round(0.2 * (64 * 16 + 16 * 8))
        return (model(problem.x) - task).square().mean().item()


def test_it_learns_what_magnitude_cannot(problem):
    assert learnt(problem, 150) < 0.7 * learnt(problem, 0)
