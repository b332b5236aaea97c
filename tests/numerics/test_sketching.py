"""Bounds: what is computed is what the formulas say, and grows and falls where they say."""

import math

import pytest
import torch

from modicum.core.errors import DataError
from modicum.numerics.sketching import norm_bounds, pruning_bound, sketched


def test_a_sketch_takes_what_the_fullest_line_asks():
    mask = torch.zeros(8, 16, dtype=torch.bool)
    mask[0, :3] = True
    assert sketched(mask) == 3 * 16
    assert sketched(torch.ones(8, 16, dtype=torch.bool)) == 8 * 16, "never more than itself"
    assert sketched(torch.zeros(8, 16, dtype=torch.bool)) == 16


def test_pruning_more_needs_fewer_numbers_and_more_margin():
    draw = torch.Generator().manual_seed(0)
    weights = [torch.randn(32, 16, generator=draw), torch.randn(10, 32, generator=draw)]
    found = []
    for share in (0.9, 0.5, 0.1):
        cuts = [weight.abs().flatten().kthvalue(int((1 - share) * weight.numel())).values for weight in weights]
        found.append(pruning_bound(weights, [weight * (weight.abs() > cut) for weight, cut in zip(weights, cuts)], 1000, 1.0, 2.0))
    assert [each["numbers"] for each in found] == sorted((each["numbers"] for each in found), reverse=True)
    assert [each["perturbation"] for each in found] == sorted(each["perturbation"] for each in found)
    assert found[2]["bound"] < found[0]["bound"]
    assert pruning_bound(weights, weights, 1000, 1.0, 2.0)["perturbation"] == 0


def test_norms_of_an_identity_are_known():
    found = norm_bounds([torch.eye(4), torch.eye(4)], rows=100, margin=1.0, largest=10.0)
    assert found["frobenius"] == pytest.approx(2 * 2 * 2) and found["spectral"] == pytest.approx((2 * 4 ** (2 / 3)) ** 1.5)
    assert found["spectral and frobenius"] == pytest.approx(2 * 2 * math.sqrt(8))


def test_layers_that_do_not_follow_are_told():
    with pytest.raises(DataError, match="must be matrices of which each takes what the one before gives"):
        norm_bounds([torch.ones(3, 4), torch.ones(2, 4)], 10, 1.0, 1.0)
