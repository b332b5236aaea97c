"""The cubic schedule: met to the entry, what has gone stays away, and the large sparse model beats the small dense one."""

import torch
from torch import nn

from modicum.core.parametrization import Step
from modicum.restrict import Gradual


def test_the_schedule_is_cubic():
    method = Gradual(keep=0.1, since=0.25, until=0.75)
    assert [method.density(Step(number, 100)) for number in (0, 25, 50, 75, 99)] == [1.0, 1.0, round(0.1 + 0.9 / 8, 12), 0.1, 0.1]


def test_entries_go_on_schedule_and_do_not_come_back(problem):
    counts, masks = {}, []

    def each(number, t, optimizer):
        counts[number] = t.count
        masks.append(t.weight("0.weight").detach() != 0)
        assert all(state["exp_avg"].shape == parameter.shape for parameter, state in optimizer.state.items())

    loss, weights = problem.learn("gradual keep=0.1 every=10", each=each)
    assert counts[30] == 64 * 16 + 16 * 8 and counts[150] == counts[113] == round(0.1 * (64 * 16 + 16 * 8)), "the last pruning is on time"
    assert all(not bool((later & ~earlier).any()) for earlier, later in zip(masks, masks[1:]))
    torch.manual_seed(problem.seed)
    small = nn.Sequential(nn.Linear(64, 2, bias=False), nn.Tanh(), nn.Linear(2, 8, bias=False))
    optimizer = torch.optim.Adam(small.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        (small(problem.x) - problem.y).square().mean().backward()
        optimizer.step()
    assert sum(p.numel() for p in small.parameters()) > counts[150] and loss < (small(problem.x) - problem.y).square().mean()
