"""Activating while pruning: dead rows are told by gradients, and their most negative entries go first."""

import torch
from torch import nn

from modicum.core.parametrization import Start, State, Step
from modicum.restrict import Activating
from modicum.train.trained import trained


def state():
    method = Activating(keep=0.4, since=0.0, until=1.0, every=1)
    common = method.common({"w": (4, 5)}, torch.Generator(), 0)
    weight = torch.tensor([[1.0, -1, 2, -2, 3]]).repeat(4, 1) * torch.tensor([[1.0], [1], [0.01], [1]])
    return method, method.begin(Start("w", (4, 5), weight, torch.Generator().manual_seed(0), 0, common=common))


def test_negative_entries_of_dead_rows_go_before_smaller_ones():
    method, begun = state()
    dead = begun.having(frozen={"silent": torch.tensor([0.0, 5, 0, 0]), "seen": torch.tensor([5.0])})
    gone = sorted(set(range(20)) - set(method._staying(dead, 13).tolist()))
    assert gone == [6, 8, 10, 11, 12, 13, 14], "two of the seven serve the dead row"
    alone = sorted(set(range(20)) - set(method._staying(begun, 13).tolist()))
    assert 8 not in alone and {10, 11, 12, 13, 14} < set(alone)


def test_a_row_that_answers_nothing_is_counted():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([9.0, -9.0, 9.0]))
    with trained(model, {"0.weight": "activating keep=0.5 every=4 looking=2 since=0.0 until=1.0"}, total=40) as t:
        watched = []
        for _ in range(3):
            watched.append(t.watched)
            model(torch.randn(8, 4)).square().sum().backward()
            t.revise()
        found: State = t.places["0.weight"].state
    assert watched == [False, False, True], "update 4 prunes, 3 and 4 are looked at"
    assert found["silent"].tolist() == [0, 1, 0] and float(found["seen"]) == 1
    assert not Activating(share=0.0).watches(Step(59, 100))
