"""SynFlow: no data, and no layer lost where one threshold would lose it."""

import torch
from torch import nn

from modicum.train.scoring import scored_on
from modicum.train.trained import trained


def masks(plan, seed=0):
    torch.manual_seed(seed)
    layers = [layer for size in (32, 32, 32, 32, 4) for layer in (nn.Linear(32, size, bias=False), nn.ReLU())]
    model = nn.Sequential(*layers[:-1])
    with trained(model, plan) as t:
        x = torch.randn(16, 32)
        loss = lambda module, batch: (nn.functional.cross_entropy(module(batch[0]), batch[0][:, :4].argmax(1), reduction="none"), 16)
        scored_on(model, t, [(row[None],) for row in x], batch=16, objective=loss)
        return [t.weight(name).detach() != 0 for name in t.places], t.count


def test_many_rounds_keep_every_layer_at_high_sparsity():
    found, count = masks("synflow keep=0.035 rounds=40")
    assert count == round(0.035 * (4 * 32 * 32 + 4 * 32)) and all(bool(mask.any()) for mask in found)


def test_it_sees_no_data():
    one, two = (masks("synflow keep=0.2", seed)[0] for seed in (0, 0))
    assert all(torch.equal(a, b) for a, b in zip(one, two))


def test_what_flows_is_conserved_at_every_unit():
    """The sum of the scores of what enters a hidden unit is that of what leaves it."""
    torch.manual_seed(0)
    weights = [torch.rand(6, 5, requires_grad=True), torch.rand(4, 6, requires_grad=True)]
    (weights[1] @ torch.relu(weights[0] @ torch.ones(5))).sum().backward()
    into, out = ((weight * weight.grad).detach() for weight in weights)
    torch.testing.assert_close(into.sum(1), out.sum(0))
