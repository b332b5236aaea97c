"""Inputs in eight or four bits: what the product is, held against a twin one number at a time and against the library that runtimes read."""

import math

import pytest
import torch

from modicum.core.errors import ModelError, SettingError
from modicum.core.option import Option
from modicum.core.unit import Stats
from modicum.forms import Activated, Cut, Integer
from modicum.forms.activated import Rounding, scale_of
from modicum.quantize import Activations, Float8, Nearest

FLOATS = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
LEVELS = {"int8": torch.arange(-128.0, 128.0), "fp8": FLOATS[FLOATS.isfinite()].unique(), "int4": torch.arange(-8.0, 8.0)}
TOP = {"int8": 127.5, "fp8": 448.0, "int4": 7.5}


def twin(value, scale, format):
    """The nearest code times the scale; of two as near, the even one."""
    code = max(-448.0, min(448.0, value / scale))
    levels = LEVELS[format].tolist()
    near = min(abs(code - level) for level in levels)
    either = [level for level in levels if abs(code - level) == near]
    return scale * (either[0] if format == "fp8" else min(either, key=lambda level: level % 2))


@pytest.mark.parametrize("format", TOP)
@pytest.mark.parametrize("scale", ["dynamic", "static"])
def test_every_input_goes_to_its_nearest_code(format, scale):
    inputs = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3
    inputs[0, 1] = 0
    whole = None if scale == "dynamic" else torch.tensor([0.6 * float(inputs.abs().max()) / TOP[format]])  # the largest are cut off
    found = Rounding(format, whole)(inputs)
    for token, taken in zip(inputs.reshape(-1, 7).tolist(), found.reshape(-1, 7).tolist(), strict=True):
        own = max(map(abs, token)) / TOP[format] if whole is None else float(whole)
        for value, got in zip(token, taken, strict=True):
            assert math.isclose(got, twin(value, own, format) if own else 0.0, rel_tol=1e-9, abs_tol=1e-12)
    assert not found[0, 1].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("format", TOP)
@pytest.mark.parametrize("scale", ["dynamic", "static"])
def test_it_is_what_compressed_tensors_computes(format, scale, dtype):
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

    inputs = (torch.randn(2, 5, 33) * torch.logspace(-3, 2, 33)).to(dtype)
    inputs[1, 2] = 0
    kind = {"num_bits": int(format[-1]), "type": "float" if format == "fp8" else "int", "symmetric": True}
    if scale == "dynamic":
        args = QuantizationArgs(**kind, strategy="token", dynamic=True)
        step, zero = compute_dynamic_scales_and_zp(inputs, args, torch.nn.Linear(1, 1))
        found = Rounding(format)(inputs)
    else:
        args, step, zero = QuantizationArgs(**kind, strategy="tensor"), scale_of(inputs.abs().amax().reshape(1), format), None
        found = Rounding(format, step)(inputs)
    assert torch.equal(found, fake_quantize(inputs, step, zero, args))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_four_bit_floats_are_what_compressed_tensors_computes(dtype):
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

    inputs = (torch.randn(2, 50, 96) * torch.logspace(-3, 2, 96)).to(dtype)
    inputs[1, 2] = 0
    inputs[0, 0, :32] = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 6] * 4)  # halfway between levels
    kind = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "group", "group_size": 32, "dynamic": True}
    args = QuantizationArgs(**kind, scale_dtype="torch.uint8", zp_dtype="torch.uint8")
    step, zero = compute_dynamic_scales_and_zp(inputs, args, torch.nn.Linear(1, 1))
    found = Rounding("mxfp4")(inputs)
    assert found.dtype == dtype and torch.equal(found, fake_quantize(inputs, step, zero, args))
    assert Activations(format="mxfp4", scale="static").wanted() == frozenset()
    ragged = Rounding("mxfp4")(inputs[..., :40])
    assert torch.equal(ragged[..., :32], found[..., :32]) and ragged.shape == (2, 50, 40)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_four_bit_floats_under_scales_are_what_compressed_tensors_computes(dtype):
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp, generate_gparam

    inputs = (torch.randn(2, 50, 96) * torch.logspace(-3, 2, 96)).to(dtype)
    inputs[1, 2] = 0
    inputs[0, 0, :16] = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 6] * 2)  # halfway between levels
    kind = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group", "group_size": 16, "dynamic": "local"}
    args = QuantizationArgs(**kind, scale_dtype="torch.float8_e4m3fn", zp_dtype="torch.float8_e4m3fn")
    for share in (1.0, 0.1):  # what is larger than all that calibration saw is cut off
        seen = inputs.float().abs().max() * share
        whole = generate_gparam(-seen, seen)
        assert torch.equal(scale_of(seen.reshape(1), "nvfp4"), whole)
        step, zero = compute_dynamic_scales_and_zp(inputs, args, torch.nn.Linear(1, 1), global_scale=whole)
        found = Rounding("nvfp4", whole)(inputs)
        assert found.dtype == dtype and torch.equal(found, fake_quantize(inputs, step, zero, args, global_scale=whole))
    assert torch.equal(scale_of(torch.zeros(1), "nvfp4"), torch.ones(1)) and Activations(format="nvfp4").wanted() == Activations.needs
    ragged = Rounding("nvfp4", whole)(inputs[..., :40])
    assert torch.equal(ragged[..., :32], found[..., :32]) and ragged.shape == (2, 50, 40)
    inputs[0, 1, 3] = torch.inf
    assert Rounding("nvfp4", whole)(inputs)[0, 1, :16].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_what_is_not_finite_stays_seen_in_four_bit_floats_and_the_largest_numbers_stay_finite(dtype):
    top = torch.finfo(dtype).max
    inputs = torch.ones(4, 64, dtype=dtype)
    inputs[:, 3] = torch.tensor([torch.inf, torch.nan, top, -min(3e38, top)], dtype=dtype)
    found = Rounding("mxfp4")(inputs)
    assert found[:2, :32].isnan().all() and found[2:].isfinite().all() and torch.equal(found[:, 32:], inputs[:, 32:])
    assert (found[2:, 3].abs() > 0.9 * min(3e38, top)).all()


def test_the_product_takes_what_is_rounded_and_the_value_is_the_weights(layer):
    thing = layer()
    weights, form = thing.apply(Nearest(bits=8, group=0)), thing.apply(Nearest(bits=8, group=0), Activations())
    assert isinstance(form, Activated) and torch.equal(form.dense(), weights.dense()) and form.nbytes == weights.nbytes
    assert torch.equal(form.product(thing.inputs), Rounding("int8")(thing.inputs) @ weights.dense().T)
    assert not torch.equal(form.product(thing.inputs), weights.product(thing.inputs))


def test_a_static_scale_is_of_the_largest_input_that_was_seen(layer):
    thing = layer(dtype=torch.bfloat16)
    thing.inputs[7, 3] = -31.0
    form = thing.apply(Float8(), Activations(format="fp8", scale="static"))
    assert form.inputs.scale.dtype == torch.bfloat16 and form.inputs.scale.shape == (1,)
    assert float(form.inputs.scale) == pytest.approx(31 / 448, rel=2**-8)
    assert form.nbytes == thing.apply(Float8()).nbytes + 2


def test_of_a_cut_only_what_remains_is_rounded(layer):
    thing, columns = layer(4, 6), torch.tensor([1, 0, 1, 1, 0, 1]).bool()
    thing.inputs[:, ~columns] = 100.0  # the wide module gets these too, and they must not set the scale
    inner = Nearest(bits=8, group=0).quantize(thing.weight[:, columns], Nearest(bits=8, group=0).grid, Stats(), torch.float32)
    for scale in ("dynamic", "static"):
        form = thing.apply(Activations(scale=scale), current=Cut(inner, None, columns))
        assert isinstance(form, Cut) and isinstance(form.inner, Activated)
        torch.testing.assert_close(form.product(thing.inputs), form.inner.product(thing.inputs[:, columns]))
        torch.testing.assert_close(form.rounding(thing.inputs) @ form.dense().T, form.product(thing.inputs))
        if scale == "static":
            assert float(form.inner.inputs.scale) == pytest.approx(float(thing.inputs[:, columns].abs().max()) / 127.5)


def test_tokens_of_their_own_scales_fare_better_where_one_is_large(layer):
    thing = layer()
    thing.inputs[0] *= 300
    lost = {scale: thing.apply(Nearest(bits=8, group=0), Activations(scale=scale)) for scale in ("dynamic", "static")}
    exact = thing.inputs[1:] @ thing.weight.T
    error = {scale: float((form.product(thing.inputs[1:]) - exact).norm() / exact.norm()) for scale, form in lost.items()}
    assert error["dynamic"] < 0.02 < 10 * error["dynamic"] < error["static"]


def test_a_static_scale_needs_inputs(layer):
    with pytest.raises(ModelError, match=r"activations scale=static needs inputs of it, and none were seen"):
        layer().apply(Nearest(bits=8, group=0), Activations(scale="static"), stats=Stats())


def test_weights_cannot_be_rounded_after_it(layer):
    with pytest.raises(SettingError, match=r"quantize/nearest: must come before .* left it activated"):
        layer().apply(Activations(), Nearest(bits=8, group=0))


def test_its_text():
    option = Option.parse("gptq bits=8 group=0 | activations format=fp8 scale=static")
    assert option.steps[1] == Activations(format="fp8", scale="static") and Option.parse(str(option)) == option
    with pytest.raises(SettingError, match=r"activations\.format: must be one of int8, fp8, int4, mxfp4, nvfp4, got 'int2'"):
        Option.parse("activations format=int2")


def test_zeros_stay_where_pruning_left_them(layer):
    thing = layer()
    form = thing.apply(Nearest(bits=8, group=0), Activations())
    where = torch.zeros(24, 96, dtype=torch.bool)
    where[::2] = True
    zeroed = form.zeroed(where)
    assert isinstance(zeroed.inner, Integer) and not zeroed.dense()[where].any() and zeroed.rounding is form.rounding
