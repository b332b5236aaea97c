"""Static model pruning: weights stay, a mask is learnt, and it is better than the largest weights."""

import torch
from torch import nn

from modicum.train.trained import trained


def learnt(problem, steps, keep=0.2):
    torch.manual_seed(problem.seed)
    model = nn.Sequential(nn.Linear(64, 16, bias=False), nn.Tanh(), nn.Linear(16, 8, bias=False))
    plain = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(100):
        plain.zero_grad()
        (model(problem.x) - problem.y).square().mean().backward()
        plain.step()
    task = problem.x[:, :4].flip(1) @ torch.linspace(-1, 1, 32).reshape(4, 8)
    with trained(model, f"smp keep={keep}", total=max(1, steps)) as t:
        before = {name: place.state["weight"].clone() for name, place in t.places.items()}
        optimizer = torch.optim.Adam(t.parameters(), lr=0.05)
        for _ in range(steps):
            optimizer.zero_grad()
            (model(problem.x) - task).square().mean().backward()
            optimizer.step()
            t.revise(optimizer)
        t.step = type(t.step)(1, 1)
        loss = (model(problem.x) - task).square().mean().item()
        for name in t.places:
            made = t.weight(name).detach()
            assert torch.equal(made, torch.where(made != 0, before[name], 0.0)), "what is used is as it was"
        return loss


def test_a_learnt_mask_beats_the_largest_weights_on_a_task_of_its_own(problem):
    assert learnt(problem, 150) < 0.8 * learnt(problem, 0)
