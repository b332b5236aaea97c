import pytest
import torch
import transformers

import modicum
from modicum.core.errors import SettingError
from modicum.forms.minifloat import LAYOUTS
from modicum.numerics.minifloat import encode
from modicum.quantize import Float4, Float6, Float8, Nearest, ZeroquantFp
from modicum.testing import random_checkpoint

FORMATS = ["mxfp6_e2m3", "mxfp6_e3m2"]
# As the specification of microscaling formats has them: the least above zero, the least normal number, and the largest.
KNOWN = {"mxfp6_e2m3": (0.125, 1.0, 7.5), "mxfp6_e3m2": (0.0625, 0.25, 28.0)}
each_format = pytest.mark.parametrize("format", FORMATS)


@each_format
def test_levels_are_those_of_the_specification(format):
    levels, least, normal, top = LAYOUTS[format].levels, *KNOWN[format]
    assert len(levels) == 32 and levels[0] == 0 and levels[1] == least and levels[-1] == top and normal in levels
    assert torch.equal(levels[levels <= normal].diff().unique(), torch.tensor([least])) and bool((levels.diff() > 0).all())
    values = torch.linspace(-1.1 * top, 1.1 * top, 4001)
    found = LAYOUTS[format].decode(encode(values, LAYOUTS[format]))
    assert torch.equal((found - values).abs(), (values[:, None] - torch.cat([levels, -levels])).abs().amin(1))


@each_format
def test_weights_on_the_grid_come_back(layer, format):
    thing = layer(6, 96)
    codes = torch.randint(0, 64, (6, 3, 32), dtype=torch.uint8)
    codes[..., 0] = 31  # the largest level is met, which tells the scale
    thing.weight = (LAYOUTS[format].decode(codes) * 2.0 ** torch.randint(-6, 0, (6, 3, 1))).view(6, 96)
    form = thing.apply(Float6(format=format))
    assert torch.equal(form.dense(), thing.weight) and form.nbytes == 6 * 72 + 6 * 3
    assert torch.equal(form.dense().bfloat16().float(), form.dense())


def test_six_bits_stand_between_four_and_eight(layer):
    thing = layer(64, 128)
    errors = [thing.error(thing.apply(step)) for step in (Float4(format="mxfp4"), Float6(), Float8())]
    assert errors[0] > 10 * errors[1] and errors[1] > errors[2] / 4
    assert thing.error(thing.apply(ZeroquantFp(format="mxfp6_e2m3"))) < 0.7 * errors[1]
    assert thing.error(thing.apply(Float6())) < thing.error(thing.apply(Float6(format="mxfp6_e3m2")))  # weights without outliers


def test_it_cannot_come_second(layer):
    with pytest.raises(SettingError, match="quantize/float6: must come before"):
        layer().apply(Nearest(), Float6())


def test_transformers_loads_e2m3_and_no_other(tmp_path):
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, vocab_size=128,
        max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    source = random_checkpoint(tmp_path / "model", config, dtype=torch.bfloat16)
    data = [{"input_ids": torch.randint(0, 128, (4, 16))} for _ in range(6)]
    common = {"data": data, "target": "transformers", "out": tmp_path / "out"}
    with pytest.raises(SettingError, match=r"whose readers have six-bit floats in E2M3 alone \(format=mxfp6_e2m3\)"):
        modicum.fit(source, method="float6 format=mxfp6_e3m2", **common)
    rules = ["*o_proj: zeroquant_fp format=mxfp6_e2m3", "*up_proj: float4", "*gate_proj: float4"]
    receipt = modicum.fit(source, method="float6", set=rules, **common).receipt
    assert receipt["verification"]["logits"]["largest"] == 0
    said = transformers.AutoConfig.from_pretrained(tmp_path / "out").quantization_config
    assert {group["format"] for group in said["config_groups"].values()} == {"mxfp6-pack-quantized", "nvfp4-pack-quantized"}
