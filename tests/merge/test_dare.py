"""Of 90 % dropped entries a layer's output hardly feels anything, because the rest is rescaled; and nothing is biased, however small the tensor."""

import torch

from modicum.merge import Dare
from modicum.merge._family import At


def test_rescaling_keeps_outputs(merged):
    draw = torch.Generator().manual_seed(0)
    base = {"w": torch.randn(64, 2048, generator=draw)}
    model = {"w": base["w"] + 0.01 * torch.randn(64, 2048, generator=draw) + 0.02}
    x = torch.rand(2048, 32, generator=draw)
    wanted = (model["w"] - base["w"]) @ x
    dropped = (merged("dare density=0.1", base, [model])["w"] - base["w"]) @ x
    pruned = (merged("breadcrumbs density=0.1 gamma=0", base, [model])["w"] - base["w"]) @ x
    error = lambda found: float((found - wanted).norm() / wanted.norm())
    assert error(dropped) < 0.15 < 0.5 < error(pruned)


def test_small_tensors_are_not_biased(merged):
    base, model = {"w": torch.zeros(16)}, {"w": torch.linspace(0.1, 3, 16)}
    drawn = lambda seed: Dare(density=0.25).combine(base["w"], [model["w"]], [1.0], At("w", (16,), (1.0,), seed=seed))
    draws = torch.stack([drawn(seed) for seed in range(2000)])
    mean, error = draws.mean(0), draws.std(0) / 2000**0.5
    assert bool(((mean - model["w"]).abs() < 5 * error).all())
    assert merged("dare density=0.25 compat=mergekit", base, [model])["w"].unique().numel() > 2


def test_chance_is_of_seed_tensor_and_model(merged):
    base, model = {"a": torch.zeros(4000), "b": torch.zeros(4000)}, {"a": torch.ones(4000), "b": torch.ones(4000)}
    found = merged("dare density=0.5", base, [model], seed=1)
    assert not torch.equal(found["a"], found["b"]) and torch.equal(found["a"], merged("dare density=0.5", base, [model], seed=1)["a"])
    assert not torch.equal(found["a"], merged("dare density=0.5", base, [model], seed=2)["a"])
    twice = merged("dare density=0.5", base, [model, model])["a"]
    assert sorted(twice.unique().tolist()) == [0.0, 2.0, 4.0], "a model that is listed twice is dropped apart"
