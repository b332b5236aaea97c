import dataclasses

import gguf
import numpy as np
import pytest
import torch

from modicum.core.blocks import Blocks
from modicum.core.errors import ModelError, SettingError
from modicum.core.ggml import TYPES, fitting
from modicum.core.unit import Stats
from modicum.forms.ggml import decode
from modicum.numerics.ggml import encode
from modicum.quantize import Ggml, Nearest

each_type = pytest.mark.parametrize("name", TYPES)


def read(blocks, name):
    """What the reader of llama.cpp's own package gives."""
    with np.errstate(all="ignore"):
        return torch.from_numpy(gguf.quants.dequantize(blocks.numpy(), getattr(gguf.GGMLQuantizationType, name.upper())))


def test_types_are_those_of_the_package():
    for name, type in ((name, type) for name, type in TYPES.items() if name != "q2_0"):  # which it does not know
        theirs = getattr(gguf.GGMLQuantizationType, name.upper())
        assert (theirs.value, gguf.GGML_QUANT_SIZES[theirs]) == (type.number, (type.columns, type.bytes))
    assert set(Ggml.__dataclass_fields__["type"].metadata["choices"]) == set(TYPES)


def test_types_that_the_package_cannot_read_are_read_as_llama_cpp_does():
    blocks = torch.tensor([[0, 56, 0b11100100, *[0] * 14, 128]], dtype=torch.uint8)  # a step of one half
    two, one = decode(blocks, "q2_0", 64)[0], decode(blocks, "q1_0", 128)[0]
    assert two[:5].tolist() == [-0.5, 0, 0.5, 1, -0.5] and two[-2:].tolist() == [-0.5, 0.5]
    assert one[:9].tolist() == [-0.5, -0.5, 0.5, -0.5, -0.5, 0.5, 0.5, 0.5, -0.5] and one[-2:].tolist() == [-0.5, 0.5]


@pytest.mark.parametrize("name", [name for name in TYPES if name not in ("q1_0", "q2_0")])
def test_blocks_are_read_to_the_bit(name):
    blocks = torch.randint(0, 256, (5, TYPES[name].row_bytes(768)), dtype=torch.uint8)
    for some in (blocks, encode(torch.randn(5, 768), name)):
        ours, theirs = decode(some, name, 768), read(some, name)
        there = ~theirs.isnan()  # what stands for no number does so for both
        assert torch.equal(ours.isnan(), ~there) and torch.equal(ours[there].view(torch.int32), theirs[there].view(torch.int32))


def test_rows_that_blocks_do_not_fill_are_refused_with_types_that_fit(layer):
    assert fitting(96) == ["iq4_nl", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0"] and not fitting(40)
    with pytest.raises(
        SettingError, match=r"ggml type=q4_k: rows must be whole blocks of 256 columns, have 96\. Choose type=iq4_nl or type=q4_0"
    ):
        layer().apply(Ggml(type="q4_k"))
    with pytest.raises(SettingError, match="have 40. Choose another method"):
        layer(4, 40).apply(Ggml())


def test_it_cannot_come_second(layer):
    with pytest.raises(SettingError, match="quantize/ggml: must come before"):
        layer().apply(Nearest(), Ggml())


def correlated(rows=16, columns=256):
    """A weight, and the covariance of inputs that go together and matter differently."""
    chance = torch.Generator().manual_seed(1)
    inputs = torch.randn(1024, columns // 4, generator=chance) @ torch.randn(columns // 4, columns, generator=chance)
    inputs = (inputs / 8 + 0.2 * torch.randn(1024, columns, generator=chance)) * torch.rand(columns, generator=chance).add(0.2)
    return torch.randn(rows, columns, generator=chance), inputs.T @ inputs


def lost(weight, form, covariance):
    error = weight.double() - form.dense().double()
    return float(((error @ covariance.double()) * error).sum())


@each_type
def test_each_step_of_the_way_loses_less(name):
    weight, covariance = correlated()
    stats = lambda: Stats(count=1024, covariance=covariance, square=covariance.diagonal().clone())
    made = lambda **settings: Ggml(type=name, **settings).code(weight, stats(), torch.float32)
    diagonal = torch.diag(covariance.diagonal())
    plain, weighed = made(rounding="nearest"), made(rounding="weighed")
    assert lost(weight, weighed, diagonal) < lost(weight, plain, diagonal)
    solved, moved = made(sweeps=0), made()
    assert lost(weight, solved, covariance) < 0.6 * lost(weight, weighed, covariance)
    assert lost(weight, moved, covariance) < 0.97 * lost(weight, solved, covariance)


@each_type
def test_a_diagonal_covariance_is_weighed(name):
    weight, covariance = correlated()
    stats = Stats(count=9, covariance=torch.diag(covariance.diagonal()), square=covariance.diagonal().clone())
    own = Ggml(type=name, damping=0.0, sweeps=0, towards=0.0)
    one, other = (step.code(weight, stats, torch.float32) for step in (own, dataclasses.replace(own, rounding="weighed")))
    assert lost(weight, one, stats.covariance) == pytest.approx(
        lost(weight, other, stats.covariance), rel=1e-3
    )  # what columns count is rounded
    alike = Stats(count=9, square=torch.full((256,), 7.0))
    assert torch.equal(Ggml(type=name, rounding="weighed").code(weight, alike, torch.float32).blocks, encode(weight, name))


@each_type
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e3])
def test_weights_of_every_size_come_near_and_zeros_stay(name, size):
    weight = torch.randn(6, 512) * size
    weight[0], weight[1, :256], weight[2], weight[3, ::2] = 0, 0, 0.7 * size, 0
    value = decode(encode(weight, name), name, 512)
    assert not value[0].any() and torch.isfinite(value).all()
    bits = TYPES[name].bits
    bound = 2.0 ** (3 - bits) if size == 1.0 else 2.0 ** (4 - bits) if size > 1 else 1.01
    assert float((value - weight).norm() / weight.norm()) < bound


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0"])
def test_the_search_loses_less_than_the_range_alone(name):
    """Of the package's own encoders none tries more than one scale."""
    weight = torch.randn(8, 512)
    ours = float((decode(encode(weight, name), name, 512) - weight).square().sum())
    blocks = gguf.quants.quantize(weight.numpy(), getattr(gguf.GGMLQuantizationType, name.upper()))
    theirs = float((read(torch.from_numpy(blocks), name) - weight).square().sum())
    assert ours < 0.95 * theirs


def naive(values, counts, scales):
    """The least error of any of so many scales, one weight at a time in float64."""
    levels = np.arange(-8, 8)
    best = np.inf
    for scale in scales:
        best = min(best, sum(c * np.min((scale * levels - v) ** 2) for v, c in zip(values, counts)))
    return best


def test_one_scale_is_nearly_the_best_of_many():
    """Twin: every scale of a fine ladder, whichever sign it has."""
    weight, counts = torch.randn(4, 32), torch.rand(32).add(0.1)
    error = ((decode(encode(weight, "q4_0", counts), "q4_0", 32) - weight).double().square() * counts).sum(1)
    for row, own in zip(weight.double().numpy(), error.tolist()):
        ladder = np.abs(row).max() / np.linspace(6.0, 11.0, 200)
        assert own <= 1.06 * naive(row, counts.double().numpy(), [*ladder, *-ladder])


def test_what_is_no_number_is_refused(layer):
    thing = layer(4, 256)
    thing.weight[1, 3] = torch.nan
    for rounding in ("nearest", "weighed"):
        with pytest.raises(ModelError, match="must be finite, holds NaN or Inf"):
            thing.apply(Ggml(type="q4_k", rounding=rounding))
    thing.weight[1, 3] = 1e30  # beyond the steps of float16
    with pytest.raises(ModelError, match="must be finite"):
        thing.apply(Ggml(type="q6_k", rounding="weighed"))


def test_columns_whose_inputs_were_always_zero_are_rounded_too():
    weight, covariance = correlated()
    covariance[:, 64:] = covariance[64:] = 0
    stats = Stats(count=9, covariance=covariance, square=covariance.diagonal().clone())
    for rounding in ("gptq", "weighed"):
        value = Ggml(type="q5_k", rounding=rounding).code(weight, stats, torch.float32).dense()
        assert float((value - weight)[:, 64:].norm() / weight[:, 64:].norm()) < 0.1


@pytest.mark.parametrize("name", ["q2_k", "q4_k"])
def test_columns_of_a_table_make_up_for_each_other_as_the_output_feels_them(name):
    weight, felt = correlated()
    made = {
        rounding: Ggml(type=name, rounding=rounding).code(weight, Stats(felt=seen), torch.float32)
        for rounding, seen in (("felt", felt), ("nearest", felt))
    }
    assert lost(weight, made["felt"], felt) < 0.7 * lost(weight, made["nearest"], felt)
    unseen = Ggml(type=name).without_data().code(weight, Stats(), torch.float32)
    assert torch.equal(unseen.blocks, made["nearest"].blocks)
    assert Ggml(type=name).without_data() == Ggml(type=name, rounding="felt") == Ggml(type=name, rounding="felt").without_data()


def test_columns_that_are_bound_together_gain_from_being_decided_together():
    """At equal bits points of a list lose less than scales on an even grid, and every row of a file is one of the list's."""
    weight, covariance = correlated()
    stats = lambda: Stats(count=1024, covariance=covariance, square=covariance.diagonal().clone())
    even, bound = (Ggml(type=name).code(weight, stats(), torch.float32) for name in ("q3_k", "iq3_s"))
    assert even.nbytes == bound.nbytes and lost(weight, bound, covariance) < lost(weight, even, covariance)


def test_blocks_of_a_covariance_are_decided_each_by_itself():
    weight, covariance = correlated(columns=512)
    halves = tuple(covariance[low : low + 256, low : low + 256] for low in (0, 256))
    stats = lambda moment: Stats(count=1024, covariance=moment, square=moment.diagonal().clone())
    own = Ggml(type="iq2_s", sweeps=0, towards=0.0)
    apart, whole = (own.code(weight, stats(moment), torch.float32) for moment in (Blocks(halves), torch.block_diag(*halves)))
    assert lost(weight, apart, torch.block_diag(*halves)) == pytest.approx(lost(weight, whole, torch.block_diag(*halves)), rel=0.02)
