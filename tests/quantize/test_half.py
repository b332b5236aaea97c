import pytest
import torch

from modicum.core.errors import SettingError
from modicum.core.unit import Site
from modicum.quantize import Half, Nearest


def test_eleven_bits_remain_at_every_magnitude(layer):
    thing = layer()
    thing.weight = thing.weight * 10 ** torch.linspace(-3, 0, 96)
    relative = ((thing.apply(Half()).dense() - thing.weight) / thing.weight).abs()
    assert float(relative.quantile(0.99)) <= 2**-11


def test_outliers_take_nothing_from_the_others(layer):
    thing = layer()
    thing.weight[:, 0] = 300.0
    lost = lambda step: float((thing.apply(step).dense() - thing.weight)[:, 1:].norm())
    assert lost(Half()) < 0.01 * lost(Nearest(bits=8, group=0))


def test_it_reduces_to_the_weights_where_they_are_halves_times_a_scale(layer):
    thing = layer()
    thing.weight = torch.cat([torch.ones(24, 1), torch.rand(24, 95)], 1).half().float() * torch.rand(24, 1)
    assert torch.equal(thing.apply(Half()).dense(), thing.weight)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_zeros_and_extremes_stay_finite(layer, dtype):
    thing = layer(4, 8, dtype=dtype)
    thing.weight = torch.tensor([0.0, 1.0, -1.0, 1e-3])[:, None].expand(4, 8).to(dtype) * torch.finfo(dtype).max
    form = thing.apply(Half())
    assert torch.isfinite(form.dense()).all() and not form.dense()[0].any() and form.nbytes == 4 * 8 * 2 + 4 * dtype.itemsize
    torch.testing.assert_close(form.dense(), thing.weight, rtol=1e-2 if dtype == torch.bfloat16 else 1e-3, atol=0)


@pytest.mark.parametrize("dtype, worth", [(torch.float64, True), (torch.float32, True), (torch.float16, False), (torch.bfloat16, False)])
def test_it_is_offered_where_it_saves_bytes(layer, dtype, worth):
    assert Half().saves(Site("layer", "unit", (layer(dtype=dtype).unit,))) is worth


def test_it_cannot_come_after_another_quantizer(layer):
    with pytest.raises(SettingError, match=r"quantize/half: must come before .* left it integer\. Put quantize/half first"):
        layer().apply(Nearest(), Half())
