import torch

from modicum.core.unit import Stats
from modicum.quantize import Float4, Gptq, ZeroquantFp

FORMATS = ["mxfp4", "nvfp4"]


def test_absorbing_errors_beats_rounding_and_is_rounding_without_correlation(layer):
    thing = layer()
    for layout in FORMATS:
        assert thing.error(thing.apply(ZeroquantFp(format=layout))) < 0.7 * thing.error(thing.apply(Float4(format=layout)))
    plain = Stats(count=9, covariance=torch.eye(96))
    for layout in FORMATS:
        assert torch.equal(thing.apply(ZeroquantFp(format=layout), stats=plain).dense(), thing.apply(Float4(format=layout)).dense())


def test_finer_scales_lose_less_and_integers_of_equal_bytes_less_on_full_ranges(layer):
    thing = layer()
    fine, coarse = (thing.error(thing.apply(ZeroquantFp(format=layout))) for layout in ("nvfp4", "mxfp4"))
    assert fine < coarse
    thing.weight = torch.rand(24, 96) - 0.5
    assert thing.error(thing.apply(Gptq(bits=4, group=32, symmetric=True))) < thing.error(thing.apply(ZeroquantFp(format="nvfp4")))


def test_without_data_rounding_stands_in():
    assert ZeroquantFp(format="mxfp4").without_data() == Float4(format="mxfp4")
