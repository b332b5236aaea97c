"""Directories for plain ``from_pretrained``: loaded by Transformers and compared with the dequantized weights, logits and all."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import modicum
from modicum.core.errors import ModelError, SettingError
from modicum.export.hf import Transformers
from modicum.testing import zoo

# In the short form one of each kind: plain, experts, fused projections, biases, no attention; the others in the long one.
DECODERS = ["llama", "qwen3_moe", "phi3", "opt", "mamba"]
OTHERS = ["mistral", "qwen2", "qwen3", "gemma2", "gpt_neox", "deepseek_v3", "bloom", "gemma3", "jamba", "mamba2"]
# Linears with a forward of their own, or none at all: nothing there that compressed-tensors can hold.
NOTHING = ["gpt2", "falcon", "t5"]
# Two instances of Jamba with equal weights differ by bfloat16 rounding; all others are equal to the bit.
ROUNDING = {"jamba": 1e-3}


def fitted(name, tmp_path, **settings):
    model, batches = zoo.build(name, dtype=torch.bfloat16)
    return model, batches, modicum.fit(model, data=batches, target="transformers", out=tmp_path / "out", allow_fallback=True, **settings)


@pytest.mark.parametrize("name", [*DECODERS, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_loads_with_the_right_logits(name, tmp_path):
    model, _, result = fitted(name, tmp_path, method=f"gptq bits=4 group=32{' sweeps=0' if name in DECODERS else ''}")
    assert result.receipt["verification"]["logits"]["largest"] < ROUNDING.get(name, 1e-6)
    loaded = type(model).from_pretrained(tmp_path / "out", dtype="auto")
    assert isinstance(loaded, type(model))
    reasons = {row["reason"] for row in result.receipt["coverage"]["untreated"]}
    assert all(reason.startswith("target: ") or reason in ("no option fits", "vector", "table", "small") for reason in reasons)


@pytest.mark.parametrize("name", NOTHING)
def test_a_model_it_cannot_hold_is_refused(name, tmp_path):
    with pytest.raises(SettingError, match="on no layer of this model"):
        fitted(name, tmp_path, method="gptq bits=4 group=32")
    assert not (tmp_path / "out").exists()


def test_mixed_widths_in_one_directory(tmp_path):
    _, _, result = fitted("llama", tmp_path, bpw=9.0, menu="nearest bits=4 group=32,nearest bits=8 group=32", search_time=0)
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert len(config["config_groups"]) > 1
    assert result.receipt["verification"]["logits"]["largest"] < 1e-6


def test_experts_have_one_scheme_all_or_none(tmp_path):
    _, _, result = fitted("qwen3_moe", tmp_path, bpw=7.0, menu="nearest bits=4 group=32,nearest bits=8 group=32,float8", search_time=0)
    assert {site["kind"] for site in result.receipt["sites"]} >= {"experts", "fused"}
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    groups = [group for group in config["config_groups"].values() if any("experts" in target for target in group["targets"])]
    assert len(groups) == 1
    assert groups[0]["weights"]["symmetric"]


def test_a_directory_that_its_loader_reads_otherwise_is_told(tmp_path, monkeypatch):
    """As a loader would that has another opinion on where the scales belong."""
    finish = Transformers.finish

    def finished(self, directory, *rest):
        finish(self, directory, *rest)
        (path,) = directory.glob("*.safetensors")
        tensors = load_file(path)
        name = next(name for name in tensors if name.endswith("weight_scale"))
        save_file({**tensors, name: tensors[name] * 2}, path, {"format": "pt"})

    monkeypatch.setattr(Transformers, "finish", finished)
    with pytest.raises(ModelError, match="the reloaded model must match the dequantized weights, differs by"):
        fitted("llama", tmp_path, method="nearest bits=4 group=32")
    assert not (tmp_path / "out").exists()


def test_every_width_is_what_the_library_decompresses(tmp_path):
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    from modicum.core.unit import Stats
    from modicum.export.schemes import reads_widths, tensors
    from modicum.numerics.grid import Grid
    from modicum.quantize import Nearest

    weight = torch.randn(48, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    for bits in filter(reads_widths, range(2, 9)):
        for group in (0, 32):
            form = Nearest(bits=bits).quantize(weight.float(), Grid(bits, group, True), Stats(), torch.bfloat16)
            strategy = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
            scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(num_bits=bits, type="int", symmetric=True, **strategy))
            assert torch.equal(compressor.decompress(tensors(form, None), scheme)["weight"], form.dense())


def test_companions_and_shards(tmp_path):
    model, batches = zoo.tied_twin()
    model.save_pretrained(tmp_path / "model")
    for name, text in (("LICENSE", "free"), ("chat_template.jinja", "{{ messages }}"), ("notes.bin", "weights")):
        (tmp_path / "model" / name).write_text(text)
    modicum.fit(tmp_path / "model", method="nearest bits=4", data=batches, target="transformers", out=tmp_path / "out")
    assert (tmp_path / "out" / "LICENSE").read_text() == "free"
    assert (tmp_path / "out" / "chat_template.jinja").exists()
    assert not (tmp_path / "out" / "notes.bin").exists()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_sharded_as_transformers_does(tmp_path, monkeypatch):
    import modicum.export._family as family

    model, batches = zoo.build("llama")
    monkeypatch.setattr(family, "SHARD_BYTES", 60_000)
    monkeypatch.setattr(family.Layout.nbytes, "__defaults__", (60_000,))
    monkeypatch.setattr(family.Layout.write, "__defaults__", (60_000,))
    monkeypatch.setattr(family.Layout.shards, "__defaults__", (60_000,))
    result = modicum.fit(model, method="nearest bits=8 group=32", data=batches, target="transformers", out=tmp_path / "out")
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    assert result.receipt["bytes"]["predicted"] == result.receipt["bytes"]["actual"]
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
