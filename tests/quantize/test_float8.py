import pytest
import torch

from modicum.core.errors import SettingError
from modicum.quantize import Float8, Nearest


def test_every_weight_goes_to_its_nearest_float(layer):
    thing = layer(6, 40)
    form = thing.apply(Float8())
    levels = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    levels = levels[torch.isfinite(levels)]
    for row in range(6):
        scale = float(thing.weight[row].abs().max()) / 448
        nearest = levels[(thing.weight[row][:, None] / scale - levels).abs().argmin(1)] * scale
        torch.testing.assert_close((form.dense()[row] - thing.weight[row]).abs(), (nearest - thing.weight[row]).abs(), rtol=1e-3, atol=1e-6)


def test_errors_are_relative(layer):
    thing = layer()
    weight = thing.weight * 10 ** torch.linspace(-1.5, 0, 96)
    thing.weight = weight
    relative = ((thing.apply(Float8()).dense() - weight) / weight).abs()
    assert float(relative.quantile(0.99)) <= 2**-4  # three mantissa bits


def test_rows_with_outliers_fare_better_than_with_integers(layer):
    thing = layer()
    thing.weight[:, 0] = 300.0
    lost = lambda step: float((thing.apply(step).dense() - thing.weight)[:, 1:].norm())
    assert lost(Float8()) < 0.2 * lost(Nearest(bits=8, group=0))


def test_full_ranges_fare_better_with_integers(layer):
    thing = layer()
    thing.weight = torch.rand(24, 96) - 0.5
    lost = lambda step: float((thing.apply(step).dense() - thing.weight).norm())
    assert lost(Nearest(bits=8, group=0)) < 0.5 * lost(Float8())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_zeros_and_extremes_stay_finite(layer, dtype):
    thing = layer(4, 8, dtype=dtype)
    thing.weight = torch.tensor([0.0, 1.0, -1.0, 1.0])[:, None].expand(4, 8).to(dtype) * torch.finfo(dtype).max
    form = thing.apply(Float8())
    assert torch.isfinite(form.numbers.float()).all() and not form.dense()[0].any() and form.nbytes == 4 * 8 + 4 * dtype.itemsize
    assert torch.isfinite(form.numbers.double() * form.scale.double()).all()


def test_it_cannot_come_after_another_quantizer(layer):
    with pytest.raises(SettingError, match=r"quantize/float8: must come before .* left it integer\. Put quantize/float8 first"):
        layer().apply(Nearest(), Float8())
