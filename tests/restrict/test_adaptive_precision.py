"""Adaptive precision: words are as short as the weights' distribution allows, longer where gradients cancel, and never overflow."""

import torch
from torch import nn

from modicum.core.parametrization import Start, Step
from modicum.restrict import AdaptivePrecision
from modicum.train.trained import trained


def test_words_are_short_where_the_weights_lie_on_a_coarse_grid():
    method, chance = AdaptivePrecision(divergence=0.05), torch.Generator().manual_seed(0)
    coarse, fine = torch.randint(-1, 2, (64, 64), generator=chance).float(), torch.randn(64, 64, generator=chance)
    assert method.fewest(coarse) == 2 < method.fewest(fine) <= 8
    assert AdaptivePrecision(divergence=0.0, bits=6).fewest(fine) == 6


def test_cancelling_gradients_ask_for_a_bit():
    method = AdaptivePrecision(every=2, divergence=10.0)
    state = method.begin(Start("w", (8, 8), torch.randn(8, 8), torch.Generator().manual_seed(0), 0))
    bits = {}
    for name, sign in (("agree", 1.0), ("cancel", -1.0)):
        found = state
        for number, gradient in ((1, torch.ones(8, 8)), (2, sign * 0.9 * torch.ones(8, 8))):
            found = method.revise({"w": found}, {"w": gradient}, 0, Step(number, 10)).states["w"]
        bits[name] = int(found["bits"])
    assert bits == {"agree": 2, "cancel": 3}


def test_no_weight_overflows_its_words():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 8, bias=False)), torch.randn(32, 8)
    with trained(model, "adaptive_precision every=5", total=40) as t:
        optimizer = torch.optim.SGD(t.parameters(), lr=0.5)
        for _ in range(40):
            optimizer.zero_grad()
            (model(x) - 20 * x).square().mean().backward()
            optimizer.step()
            t.revise(optimizer)
            state = t.places["0.weight"].state
            high = float(state["latent"].detach().abs().max())
            assert (2 ** (int(state["bits"]) - 1) - 1) * 2.0 ** -int(state["fraction"]) >= high > 0
        (form,) = t.forms().values()
    assert form.bits == int(state["bits"]) and form.nbytes <= 64 + 4
