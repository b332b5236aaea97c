import importlib.util

import pytest
import torch
import transformers

import modicum
from modicum.core.errors import SettingError
from modicum.core.option import Option
from modicum.core.unit import Unit
from modicum.forms.blockwise import LEVELS, Doubled, steps
from modicum.numerics.blockwise import decode, doubled, encode
from modicum.quantize import Bitsandbytes, Gptq, Nearest
from modicum.table.zeros import zeros
from modicum.testing import random_checkpoint

each_levels = pytest.mark.parametrize("levels", sorted(LEVELS))
READERS = all(importlib.util.find_spec(name) for name in ("bitsandbytes", "accelerate"))


@each_levels
def test_values_meet_their_nearest_level(levels):
    values = torch.linspace(-1, 1, 4001)
    found = decode(encode(values, levels), levels)
    torch.testing.assert_close((found - values).abs(), (values[:, None] - LEVELS[levels]).abs().amin(1), rtol=0, atol=1e-7)
    assert torch.equal(decode(torch.arange(16, dtype=torch.uint8), levels), LEVELS[levels])


@each_levels
def test_each_weight_is_a_level_of_its_group_one_by_one(layer, levels):
    """The twin: a weight at a time, its scale the largest of its group."""
    thing = layer(3, 96)
    form = thing.apply(Bitsandbytes(levels=levels, rounding="nearest"))
    for row in range(3):
        for column in range(0, 96, 5):
            group = thing.weight[row, column // 64 * 64 : column // 64 * 64 + 64]
            top = group.abs().max()
            assert form.scale[row, column // 64] == top
            distance = (thing.weight[row, column] / top - LEVELS[levels]).abs()
            assert distance[form.codes[row, column].int()] <= distance.min() + 1e-6
            assert form.dense()[row, column] == LEVELS[levels][form.codes[row, column].int()] * top


@each_levels
def test_weights_on_the_levels_come_back(layer, levels):
    thing = layer(4, 128)
    codes = torch.randint(0, 16, (4, 2, 64))
    codes[..., 0] = int(LEVELS[levels].argmax())
    thing.weight = (LEVELS[levels][codes] * 2.0 ** torch.randint(-4, 4, (4, 2, 1))).view(4, 128)
    for rounding in ("nearest", "gptq"):
        assert torch.equal(thing.apply(Bitsandbytes(levels=levels, rounding=rounding)).dense(), thing.weight)


def test_scales_in_eight_bits_are_near_and_cost_an_eighth_of_a_bit():
    scale = torch.rand(40, 20) + 0.5
    told = doubled(scale)
    assert isinstance(told, Doubled) and told.outer.shape == (4,) and len(steps()) == 256 and bool((steps().diff() > 0).all())
    above = scale - scale.mean()
    assert float((told.value() - scale).abs().max()) < 0.04 * float(above.abs().max())
    assert torch.equal(doubled(torch.ones(3, 5)).value(), torch.ones(3, 5))


def test_columns_that_make_up_for_each_other_lose_less(layer):
    thing = layer(64, 128)
    for levels in LEVELS:
        plain, solved = (thing.error(thing.apply(Bitsandbytes(levels=levels, rounding=rounding))) for rounding in ("nearest", "gptq"))
        assert solved < 0.6 * plain
    normal, floats = (thing.error(thing.apply(Bitsandbytes(levels=levels, rounding="nearest"))) for levels in ("nf4", "fp4"))
    assert normal < floats  # what NF4 is for: weights that are normal
    assert thing.error(thing.apply(Bitsandbytes())) < thing.error(thing.apply(Nearest(bits=4, group=64)))
    assert thing.error(thing.apply(Bitsandbytes(double=True))) < 1.1 * thing.error(thing.apply(Bitsandbytes()))


def test_bytes_are_told_before_any_work(layer):
    for text in ("bitsandbytes", "bitsandbytes double=true", "bitsandbytes levels=fp4 block=32 double=true rounding=nearest"):
        unit = Unit("layer.weight", "layer.weight", "layer", "linear", (300, 128), (300, 128), torch.bfloat16)
        made = layer(300, 128, dtype=torch.bfloat16).apply(*Option.parse(text).steps)
        assert zeros(Option.parse(text), unit, (300, 128)).nbytes == made.nbytes, text


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_zeros_and_extremes_stay_finite(layer, dtype):
    thing = layer(4, 96, dtype=dtype)
    span = torch.finfo(dtype)
    thing.weight = torch.tensor([0.0, 1.0, -1.0, span.tiny / span.max])[:, None].expand(4, 96).to(dtype) * span.max
    for rounding in ("nearest", "gptq"):
        form = thing.apply(Bitsandbytes(rounding=rounding))
        assert torch.isfinite(form.dense()).all() and not form.dense()[0].any() and form.nbytes == 4 * 48 + 4 * 2 * 4


def test_it_cannot_come_second(layer):
    with pytest.raises(SettingError, match="quantize/bitsandbytes: must come before"):
        layer().apply(Gptq(), Bitsandbytes())


@pytest.fixture
def small(tmp_path):
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=128,
        max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    source = random_checkpoint(tmp_path / "model", config, dtype=torch.bfloat16)
    return source, [{"input_ids": torch.randint(0, 128, (4, 16))} for _ in range(6)]


def test_our_container_holds_it_beside_others(small, tmp_path):
    source, data = small
    rules = ["*q_proj: bitsandbytes double=true", "*down_proj: bitsandbytes levels=fp4 rounding=nearest", "*up_proj: int4"]
    found = modicum.fit(source, method="float4", set=rules, data=data, target="modicum", out=tmp_path / "out", allow_broken=True)
    assert found.receipt["verification"]["logits"]["largest"] == 0
    assert {site["option"].split()[0] for site in found.receipt["sites"]} >= {"bitsandbytes", "gptq", "float4"}


@pytest.mark.skipif(READERS, reason="bitsandbytes is installed")
def test_without_its_reader_the_target_says_what_is_missing(small, tmp_path):
    source, data = small
    with pytest.raises(
        SettingError, match=r"whose reader needs bitsandbytes and accelerate, not installed here \(pip install 'modicum\[bitsan"
    ):
        modicum.fit(source, method="bitsandbytes", data=data, target="transformers", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
