"""HQQ: better grids than the range gives, without data."""

import pytest
import torch

from modicum.core.unit import Stats
from modicum.numerics.grid import Grid
from modicum.quantize import Hqq, Nearest


def heavy_tailed(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(32, 256, generator=generator) * torch.rand(32, 256, generator=generator).pow(-0.3)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("symmetric", [False, True])
def test_smaller_error_in_its_norm_than_nearest(bits, symmetric):
    weight, grid = heavy_tailed(), Grid(bits, 64, symmetric)
    robust = Hqq(bits=bits).quantize(weight, grid, Stats(), torch.float32).dense()
    plain = Nearest(bits=bits).quantize(weight, grid, Stats(), torch.float32).dense()
    assert (weight - robust).abs().pow(0.7).sum() < (weight - plain).abs().pow(0.7).sum()
    assert (weight - robust).square().sum() < (weight - plain).square().sum()


def test_reduces_to_nearest_without_steps():
    weight, grid = heavy_tailed(1), Grid(3, 64)
    form = Hqq(bits=3, steps=0, clip=1.0).quantize(weight, grid, Stats(), torch.float32)
    assert torch.equal(form.dense(), Nearest(bits=3).quantize(weight, grid, Stats(), torch.float32).dense())


def test_more_steps_are_never_worse_in_its_norm():
    weight, grid = heavy_tailed(2), Grid(2, 64)
    errors = [
        float((weight - Hqq(bits=2, steps=steps).quantize(weight, grid, Stats(), torch.float32).dense()).abs().pow(0.7).sum())
        for steps in (1, 5, 20)
    ]
    assert errors[0] >= errors[1] >= errors[2]


def test_zero_points_are_integers_in_range():
    form = Hqq(bits=2).quantize(heavy_tailed(3), Grid(2, 64), Stats(), torch.bfloat16)
    assert form.zero.dtype == torch.uint8 and int(form.zero.max()) <= 3
