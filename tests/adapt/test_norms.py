"""PERP's claim on vectors: norms alone take back much of what a perturbed weight lost."""

import torch
from torch import nn

from modicum.adapt import Norms
from modicum.core.parametrization import Start
from modicum.train.finding import planned
from modicum.train.trained import trained


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.LayerNorm(32), nn.Linear(32, 4)).requires_grad_(False)


def test_vectors_take_back_what_a_weight_lost():
    model, x = net(), torch.randn(256, 8)
    wanted = model(x)
    model[0].weight.mul_(1 + 0.3 * torch.randn(32, 1))  # rows at other lengths, which a norm can mend
    with trained(model, {"1.weight": "norms", "*.bias": "norms"}, total=150) as t:
        optimizer, losses = torch.optim.Adam(t.parameters(), lr=0.02), []
        for _ in range(150):
            loss = (model(x) - wanted).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert t.count == 32 + 32 + 32 + 4
    assert losses[-1] < 0.25 * losses[0]


def test_one_option_for_all_means_all_vectors_and_nothing_else():
    assert set(planned(net(), "norms").units) == {"0.bias", "1.weight", "1.bias", "2.bias"}


def test_a_step_is_as_large_as_its_vector_and_one_where_that_is_zero():
    for weight, size in ((torch.full((1, 6), -3.0), 3.0), (torch.zeros(1, 6), 1.0)):
        state = Norms().begin(Start(unit="v", shape=(1, 6), weight=weight, chance=torch.Generator(), seed=0))
        assert float(state["size"]) == size and not state["change"].any()
