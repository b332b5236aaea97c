"""SNIP's claim: one look at gradients finds what a random mask of the same density misses."""

import pytest
import torch
from torch import nn

from modicum.core.errors import SettingError
from modicum.train.scoring import scored
from modicum.train.trained import trained


def test_it_finds_the_inputs_that_matter(problem):
    scored_loss, weights = problem.learn("snip keep=0.15")
    random_loss, _ = problem.learn("random keep=0.15")
    assert scored_loss < 0.5 * random_loss
    first = (weights["0.weight"] != 0).float()
    assert first[:, :4].mean() > 4 * first[:, 4:].mean()


def test_scores_are_the_naive_ones():
    torch.manual_seed(0)
    model, x, y = nn.Sequential(nn.Linear(6, 5, bias=False), nn.Linear(5, 4, bias=False)), torch.randn(9, 6), torch.randn(9, 4)
    loss_of = lambda: (model(x) - y).square().mean()
    weights = [layer.weight for layer in model]
    sizes = [(weight * gradient).abs() for weight, gradient in zip(weights, torch.autograd.grad(loss_of(), weights))]
    least = torch.cat([size.reshape(-1) for size in sizes]).sort(descending=True).values[round(0.4 * 50) - 1]
    with trained(model, "snip keep=0.4") as t:
        scored(t, loss_of)
        for name, size in zip(t.places, sizes):
            assert torch.equal(t.weight(name) != 0, size >= least)


def test_what_was_not_scored_is_told():
    model = nn.Sequential(nn.Linear(6, 5))
    with trained(model, "snip keep=0.4") as t, pytest.raises(SettingError, match="must see gradients before it is trained"):
        t.revise()


def test_a_density_below_one_weight_per_row_is_told():
    with pytest.raises(SettingError, match="must leave at least one weight per row, leaves 2 in the 12 rows"):
        trained(nn.Sequential(nn.Linear(8, 12)), "snip keep=0.02")
