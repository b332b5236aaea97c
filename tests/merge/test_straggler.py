"""Few changes stay where the pattern says, all elsewhere."""

import torch

from modicum.merging.sharpness import sharpness


def test_only_the_named_layers_are_made_sparse(merged):
    base, one = {"a.w": torch.zeros(100), "b.w": torch.zeros(100)}, {"a.w": torch.arange(100.0), "b.w": torch.arange(100.0)}
    found = merged("straggler layers=a.* density=0.1", base, [one], [0.5])
    assert torch.equal(found["b.w"], one["b.w"] / 2)
    assert int((found["a.w"] != 0).sum()) == 10 and torch.equal(found["a.w"][90:], one["a.w"][90:] / 2)
    assert torch.equal(merged("straggler density=1", base, [one], [0.25])["a.w"], merged("wise_ft", base, [one], [0.25])["a.w"])


def test_the_layer_that_the_loss_feels_is_the_sharp_one():
    tensors = {"a": torch.ones(50), "b": torch.ones(50)}
    found = sharpness(
        tensors, {"a": ["a"], "b": ["b"]}, lambda held: float(9 * (held["a"] - 1).square().sum() + (held["b"] - 1).square().sum())
    )
    assert abs(found["a"] / found["b"] - 9) < 0.1 and found["b"] > 0
