"""LISA's claim: a few blocks at a time learn what all learn, with gradients and moments of those few alone."""

import copy
import math

import pytest
import torch
from torch import nn

from modicum.adapt import Lisa
from modicum.core.parametrization import Step
from modicum.train.trained import trained


class Deep(nn.Module):
    """Residual blocks between a layer that takes in and one that gives out."""

    def __init__(self):
        super().__init__()
        self.inside = nn.Linear(12, 24)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 24)) for _ in range(4))
        self.out = nn.Linear(24, 4)

    def forward(self, x):
        x = self.inside(x)
        for block in self.blocks:
            x = x + block(x)
        return self.out(x)


def learnt(option, seed, steps=300):
    """A model on its way to another one, all of whose weights lie nearby, in no low rank."""
    torch.manual_seed(seed)
    model, x = Deep(), torch.randn(512, 12)
    other, held = copy.deepcopy(model), 0
    for parameter in other.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    y = other(x).detach()
    with trained(model, {"*": option}, total=steps, seed=seed) as t:
        optimizer = torch.optim.Adam(t.parameters(), lr=0.01)
        before = {name: t.weight(name).detach().clone() for name in t.places}
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = 0.005 * (1 + math.cos(math.pi * step / steps))
            loss = (model(x) - y).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            held = max(held, sum(moments["exp_avg"].numel() for moments in optimizer.state.values()))
            t.revise(optimizer)
        moved = {name for name in t.places if not torch.equal(t.weight(name).detach(), before[name])}
        return loss.item(), held, t.count, moved


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_one_block_at_a_time_learns_what_lora_with_its_moments_does_not(seed):
    loss, held, count, moved = learnt("full | lisa layers=1 every=5", seed)
    per_block = 2 * (24 * 24 + 24)
    assert held == count - 3 * per_block and len(moved) == 2 * (4 * 2 + 2), "moments are those of one block; in the end all have moved"
    lora, moments, _, _ = learnt("lora rank=3", seed)
    whole, _, _, _ = learnt("full", seed)
    assert moments > 0.9 * held and loss < lora and loss < 3 * whole, (loss, lora, whole)


def test_the_draw_is_of_the_seed_and_the_turn():
    units, lisa = {f"{at}": f"h.{at}" for at in range(8)} | {"head": ""}, Lisa(layers=2, every=10)
    chosen = [lisa.active(units, Step(number, 100), 3) for number in (0, 9, 10, 20, 30)]
    assert chosen[0] == chosen[1] and len(set(chosen)) > 2 and all("head" in each and len(each) == 3 for each in chosen)
    assert lisa.active(units, Step(), 4) != lisa.active(units, Step(), 3) or lisa.active(units, Step(10, 100), 4) != chosen[2]
