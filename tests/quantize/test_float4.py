import pytest
import torch
import transformers

import modicum
from modicum.core.errors import SettingError
from modicum.forms.minifloat import LAYOUTS
from modicum.numerics.minifloat import encode
from modicum.quantize import Float4, Nearest
from modicum.testing import random_checkpoint

FORMATS = ["mxfp4", "nvfp4"]
E2M1 = LAYOUTS["mxfp4"]
LEVELS = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def test_values_meet_their_nearest_level():
    values = torch.linspace(-8, 8, 4001)
    levels = torch.cat([LEVELS, -LEVELS[1:]])
    assert torch.equal((E2M1.decode(encode(values, E2M1)) - values).abs(), (values[:, None] - levels).abs().amin(1))
    assert torch.equal(E2M1.decode(torch.arange(16, dtype=torch.uint8)), torch.cat([LEVELS, -LEVELS]))
    assert not encode(torch.tensor([-0.1, -0.0]), E2M1).any()  # one zero, the positive one


@pytest.mark.parametrize("layout", FORMATS)
def test_weights_on_the_grid_come_back(layer, layout):
    thing = layer(6, 96)
    group = LAYOUTS[layout].group
    steps = 2.0 ** torch.randint(-6, 0, (6, 96 // group))
    codes = torch.randint(0, 16, (6, 96 // group, group), dtype=torch.uint8)
    codes[..., 0] = 7  # the largest level is met, which tells the scale
    thing.weight = (E2M1.decode(codes) * steps[..., None]).view(6, 96)
    assert torch.equal(thing.apply(Float4(format=layout)).dense(), thing.weight)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_zeros_and_extremes_stay_finite_and_bytes_are_exact(layer, layout, dtype):
    thing = layer(4, 40, dtype=dtype)
    span = torch.finfo(dtype)
    thing.weight = torch.tensor([0.0, 1.0, -1.0, span.tiny / span.max])[:, None].expand(4, 40).to(dtype) * span.max
    form = thing.apply(Float4(format=layout))
    assert torch.isfinite(form.dense()).all() and not form.dense()[0].any()
    assert form.nbytes == 4 * 20 + 4 * -(-40 // LAYOUTS[layout].group)
    assert float(((form.dense()[1:3].double() - thing.weight[1:3].double()) / span.max).abs().max()) <= 1 / 3


@pytest.mark.parametrize("layout", FORMATS)
def test_every_dtype_holds_the_products_whole(layer, layout):
    wide = layer(16, 64).apply(Float4(format=layout))
    assert torch.equal(wide.dense().bfloat16().float(), wide.dense())


def test_it_cannot_come_second(layer):
    with pytest.raises(SettingError, match="quantize/float4: must come before"):
        layer().apply(Nearest(), Float4())


@pytest.fixture
def small(tmp_path):
    """A tiny decoder, and what it reads."""

    def make(dtype):
        config = transformers.LlamaConfig(
            hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=128,
            max_position_embeddings=64, tie_word_embeddings=False,
        )  # fmt: skip
        return random_checkpoint(tmp_path / "model", config, dtype=dtype), [{"input_ids": torch.randint(0, 128, (4, 16))} for _ in range(6)]

    return make


def test_transformers_loads_both_beside_integers_and_floats_as_they_were_made(small, tmp_path):
    source, data = small(torch.bfloat16)
    mixed = {
        "*q_proj": "float4",
        "*o_proj": "float4 format=mxfp4",
        "*gate_proj": "zeroquant_fp",
        "*up_proj": "zeroquant_fp",
        "*down_proj": "fp8",
    }
    mixed |= {"*k_proj": "float4", "*v_proj": "float4"}
    rules = [f"{pattern}: {option}" for pattern, option in mixed.items()]
    receipt = modicum.fit(
        source, method="nearest bits=8 group=32", set=rules, data=data, target="transformers", out=tmp_path / "out", overwrite=True
    ).receipt
    assert receipt["verification"]["logits"]["largest"] == 0
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out").quantization_config
    formats = {group["format"] for group in config["config_groups"].values()}
    assert formats == {"nvfp4-pack-quantized", "mxfp4-pack-quantized", "float-quantized", "pack-quantized"}


def test_transformers_has_no_four_bit_floats_of_models_in_other_dtypes(small, tmp_path):
    source, data = small(torch.float32)
    with pytest.raises(SettingError, match="method 'float4': target transformers can hold it on no layer"):
        modicum.fit(source, method="float4", data=data, target="transformers", out=tmp_path / "out")
    receipt = modicum.fit(source, method="float4", data=data, target="modicum", out=tmp_path / "out", allow_broken=True).receipt
    assert receipt["verification"]["logits"]["largest"] <= 1e-6
