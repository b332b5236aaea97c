"""SNNK's claim: random features and one trained matrix learn what bottleneck adapters learn, with fewer trained numbers."""

import pytest
import torch

from modicum.adapt.snnk import projection
from modicum.testing import zoo
from modicum.train import Loop
from modicum.train.loop import train
from modicum.train.trained import trained


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_learns_as_bottlenecks_do_with_half_the_numbers(seed):
    draw, last, counts = torch.Generator().manual_seed(seed), {}, {}
    rows = [{"input_ids": torch.randint(3, 12, (1, 16), generator=draw)} for _ in range(4)]
    for option in ("bottleneck rank=4", "snnk features=4"):
        model, _ = zoo.build("llama")
        with trained(model, option, total=60, seed=seed) as t:
            losses = train(model, t, rows, Loop(steps=60, batch=4, rate=0.02, seed=seed))
            last[option], counts[option] = losses[-1] / losses[0], t.count
    assert counts["snnk features=4"] < 0.5 * counts["bottleneck rank=4"]
    assert last["snnk features=4"] < 0.9


def test_features_come_nearer_to_their_kernel_the_more_there_are():
    torch.manual_seed(0)
    x, errors = torch.randn(40, 16), []
    exact = torch.exp(-torch.cdist(x, x).square() / 2 / 16)
    for count in (16, 256, 4096):
        turned = x @ projection(3, count, 16).T
        features = torch.cat([turned.sin(), turned.cos()], -1) / count**0.5
        errors.append(float((features @ features.T - exact).abs().mean()))
    assert errors[0] > 2 * errors[1] > 3 * errors[2]
