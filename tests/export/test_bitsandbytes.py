"""bitsandbytes' files without bitsandbytes: their tensors, and what is refused of them. `tests/interop` holds them against the library."""

import dataclasses
import json

import pytest
import torch
import transformers
from torch import nn

import modicum
from modicum.core.errors import ModelError, SettingError
from modicum.core.option import Option
from modicum.core.unit import Stats, Unit
from modicum.export import bitsandbytes
from modicum.forms.blockwise import LEVELS, steps
from modicum.models.dequantized.view import Dequantized
from modicum.quantize import Bitsandbytes
from modicum.testing import packed, random_checkpoint

UNIT = Unit("m.weight", "m.weight", "m", "linear", (64, 128), (64, 128), torch.bfloat16)


def form(levels="nf4", double=False, rows=64, dtype=torch.bfloat16):
    weight = torch.randn(rows, 128, generator=torch.Generator().manual_seed(0)).to(dtype)
    return Bitsandbytes(levels=levels, double=double, rounding="nearest").code(weight.float(), Stats(), dtype), weight


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("levels", sorted(LEVELS))
def test_tensors_are_those_of_the_plain_twin(levels, double):
    found, weight = form(levels, double, dtype=torch.float32)
    twin, dense = packed.bitsandbytes(weight, levels, double)
    made, told = bitsandbytes.tensors(found), bitsandbytes.entries(found)
    assert {name: (value.dtype, tuple(value.shape)) for name, value in made.items()} == told
    assert set(made) == {name or "weight" for name in twin}
    for name, value in twin.items():
        if "quant_state" in name:
            assert json.loads(bytes(made[name].tolist())) == json.loads(bytes(value.tolist()))
        else:
            assert torch.equal(made[name or "weight"], value), name
    assert torch.equal(found.dense().float(), dense)


def test_no_number_changes_how_long_a_file_is():
    one, _ = form("fp4", double=True)
    offsets = (torch.tensor([value]) for value in (0.0, -1.0000001, 3.4028235e38, -1.17549435e-38, 0.1))
    scales = [dataclasses.replace(one.scale, offset=offset) for offset in offsets]
    several = [type(one)(one.codes, scale, one.type, one.block, one.dtype) for scale in scales]
    assert len({str(bitsandbytes.entries(each)) for each in several}) == 1
    for each in several:
        text = bytes(bitsandbytes.tensors(each)["weight.quant_state.bitsandbytes__fp4"].tolist())
        assert json.loads(text)["nested_offset"] == float(each.scale.offset)
    assert len(steps()) == 256 and float(steps().abs().max()) == 1


def test_shapes_that_its_reader_does_not_take_stay_as_they_are(monkeypatch):
    monkeypatch.setattr(bitsandbytes, "find_spec", lambda name: object())
    step, with_shape = Bitsandbytes(), lambda *shape, **more: dataclasses.replace(UNIT, shape=shape, **more)
    assert bitsandbytes.unread(step, [UNIT]) == ""
    assert "block 64 does not divide rows of 96" in bitsandbytes.unread(step, [UNIT, with_shape(64, 96)])
    assert "multiples of 32 rows, and there are 48" in bitsandbytes.unread(step, [with_shape(48, 128)])
    assert "experts that are stacked" in bitsandbytes.unread(step, [with_shape(64, 128, kind="expert")])
    monkeypatch.setattr(bitsandbytes, "find_spec", lambda name: None if name == "accelerate" else object())
    assert "needs accelerate, not installed here" in bitsandbytes.unread(step, [UNIT])


def test_one_file_has_one_type():
    options = lambda *texts: [Option.parse(text) for text in texts]
    assert not bitsandbytes.mixture(options("bitsandbytes", "bitsandbytes block=128 rounding=nearest", "keep", "ziplm keep=0.5"))
    assert not bitsandbytes.mixture(options("int4", "float8"))
    assert "holds nothing else that is quantized" in bitsandbytes.mixture(options("bitsandbytes", "int4"))
    for other in ("bitsandbytes levels=fp4", "bitsandbytes double=true"):
        assert "has one type, double or not" in bitsandbytes.mixture(options("bitsandbytes", other))
    with pytest.raises(ModelError, match="must have one type for all layers"):
        bitsandbytes.quantization({"a": form()[0], "b": form("fp4")[0]}, {}, [], torch.bfloat16)


def test_layers_that_stay_are_named():
    modules = {"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "norm": nn.LayerNorm(4), "c": transformers.pytorch_utils.Conv1D(4, 4)}
    said = bitsandbytes.quantization({"a": form(double=True)[0]}, modules, ["a"], torch.float16)
    assert said["llm_int8_skip_modules"] == ["b", "c"] and said["bnb_4bit_use_double_quant"] and said["bnb_4bit_quant_type"] == "nf4"
    config = transformers.BitsAndBytesConfig.from_dict(dict(said))
    assert config.load_in_4bit and config.bnb_4bit_compute_dtype == torch.float16 and config.quantization_method() == "nf4"


@pytest.fixture
def small(tmp_path):
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=128,
        max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    source = random_checkpoint(tmp_path / "model", config, dtype=torch.bfloat16)
    return source, {"data": [{"input_ids": torch.randint(0, 128, (4, 16))} for _ in range(6)], "out": tmp_path / "out"}


def test_the_directory_is_read_back_as_it_was_made(small, monkeypatch, tmp_path):
    """As far as that goes without its loader: the weights of the files, by our own reader."""
    from modicum.export.hf import Transformers

    source, common = small
    monkeypatch.setattr(bitsandbytes, "find_spec", lambda name: object())
    forms = {}

    def verify(self, directory, found, batch=None):
        with Dequantized(directory, json.loads((directory / "config.json").read_text())["quantization_config"], torch.bfloat16) as shards:
            forms.update({name: (form.dense(), shards.read(name)) for name, form in found.items()})
            module = type(self.model.module)(transformers.AutoConfig.from_pretrained(source))
            module.load_state_dict({name: shards.read(name) for name in shards.names()})
        return module.bfloat16().eval(), {"loader": "none", "class": "LlamaForCausalLM"}

    monkeypatch.setattr(Transformers, "verify", verify)
    rules = ["*layers.0.self_attn.o_proj: keep"]
    receipt = modicum.fit(source, method="bitsandbytes double=true", set=rules, target="transformers", allow_broken=True, **common).receipt
    assert len(forms) >= 14 and all(torch.equal(*pair) for pair in forms.values())
    assert receipt["bytes"]["predicted"] == receipt["bytes"]["actual"] and receipt["verification"]["logits"]["largest"] <= 1e-6


def test_what_cannot_stand_beside_it_is_refused_before_any_work(small, monkeypatch):
    source, common = small
    monkeypatch.setattr(bitsandbytes, "find_spec", lambda name: object())
    for rule in ("*o_proj: int4", "*o_proj: bitsandbytes double=true"):
        with pytest.raises(
            SettingError, match="must be able to hold what a plan may have side by side, cannot: .* a file that bitsandbytes reads"
        ):
            modicum.fit(source, method="bitsandbytes", set=[rule], target="transformers", **common)
    with pytest.raises(SettingError, match="keys and values that are rounded: a file that bitsandbytes reads says nothing of them"):
        modicum.fit(source, method="bitsandbytes", kv="fp8", target="transformers", **common)
    with pytest.raises(SettingError, match="whose files are compressed-tensors'; bitsandbytes' are those of target transformers"):
        modicum.fit(source, method="bitsandbytes", target="vllm", **common)
    assert not common["out"].exists()
