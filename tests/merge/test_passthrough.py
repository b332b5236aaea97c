"""Tensors as they are, or scaled."""

import torch


def test_tensors_are_copied(tensors, merged):
    base, (one,) = tensors(1)
    found, half = merged("passthrough", base, [one]), merged("passthrough scale=0.5", base, [one])
    assert all(torch.equal(found[name], one[name]) and torch.equal(half[name], one[name] / 2) for name in base)
