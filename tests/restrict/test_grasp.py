"""GraSP: its score is the exact one to first order, and it keeps the gradient's norm where others lose it."""

import torch
from torch import nn

from modicum.train.scoring import scored
from modicum.train.trained import trained


def test_the_difference_of_gradients_is_the_hessians_product():
    torch.manual_seed(0)
    model, x, y = nn.Sequential(nn.Linear(6, 5, bias=False), nn.Tanh(), nn.Linear(5, 4, bias=False)), torch.randn(30, 6), torch.randn(30, 4)
    loss_of = lambda: (model(x) - y).square().mean()
    weights = [layer.weight for layer in (model[0], model[2])]
    slopes = torch.autograd.grad(loss_of(), weights, create_graph=True)
    half = sum(slope.square().sum() for slope in slopes) / 2
    exact = torch.cat([(weight * part).reshape(-1) for weight, part in zip(weights, torch.autograd.grad(half, weights))]).detach()
    wanted = exact.argsort(descending=True)[: round(0.4 * len(exact))]
    with trained(model, "grasp keep=0.4") as t:
        scored(t, loss_of)
        found = torch.cat([t.weight(name).detach().reshape(-1) != 0 for name in t.places])
    assert len(set(wanted.tolist()) & set(found.nonzero()[:, 0].tolist())) >= len(wanted) - 1


def test_the_gradient_is_larger_than_under_a_random_mask(problem):
    def first(plan):
        norms = []
        problem.learn(plan, steps=1, each=lambda number, t, optimizer: norms.append(sum(p.grad.square().sum() for p in t.parameters())))
        return float(norms[0])

    assert first("grasp keep=0.2") > 2 * first("random keep=0.2")
