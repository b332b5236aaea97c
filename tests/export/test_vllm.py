"""Directories for vLLM: what it has kernels for and fuses alike, and its loader's rules told by files that break them."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import modicum
from modicum.core.errors import ModelError, SettingError
from modicum.export.vllm.architectures import row_of
from modicum.export.vllm.fusion import layers, require_readable
from modicum.testing import zoo

LLAMA = row_of(type("LlamaForCausalLM", (), {}))
FOUR = {"targets": [r"re:.*\.q_proj$", r"re:.*\.k_proj$", r"re:.*\.v_proj$"], "weights": {"num_bits": 4}, "format": "pack-quantized"}
QKV = ["a.q_proj", "a.k_proj", "a.v_proj", "a.o_proj"]


def fitted(model, batches, tmp_path, **settings):
    settings = {"method": "nearest bits=4 group=32"} | settings
    return modicum.fit(model, data=batches, target="vllm", out=tmp_path / "out", **settings)


def untreated(result):
    return {row["unit"]: row["reason"] for row in result.receipt["coverage"]["untreated"]}


def test_files_follow_vllms_rules(tmp_path):
    model, batches = zoo.build("llama", dtype=torch.bfloat16)
    result = fitted(model, batches, tmp_path, set=["*down_proj: bits=8", "model.layers.0.self_attn.*: bits=8 group=0"])
    told = result.receipt["verification"]
    assert told["logits"]["largest"] < 1e-6
    assert told["vLLM's rules"].startswith("14 layers")  # of three blocks four each, the embedding and the head
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert {group["weights"]["num_bits"] for group in config["config_groups"].values()} == {4, 8}


@pytest.mark.parametrize("option", ["nearest bits=3 group=32", "nearest bits=4 group=16", "nearest bits=2 group=0"])
def test_what_no_kernel_takes_is_refused_before_any_work(option, tmp_path):
    model, batches = zoo.build("llama", dtype=torch.bfloat16)
    with pytest.raises(SettingError, match="on no layer of this model"):
        fitted(model, batches, tmp_path, method=option)


@pytest.mark.parametrize("name", ["GPTNeoX", "Mamba", "StableLm"])
def test_an_architecture_whose_layers_are_not_known_is_refused(name, tmp_path):
    model, batches = zoo.language_model(f"{name}ForCausalLM", dtype=torch.bfloat16), zoo.build("llama")[1]
    with pytest.raises(ModelError, match="must be of an architecture whose layers in vLLM are known here, .* is none"):
        fitted(model, batches, tmp_path)


def test_rows_that_kernels_do_not_take_keep_what_is_fused_with_them_dense(tmp_path):
    model = zoo.language_model("LlamaForCausalLM", dtype=torch.bfloat16, hidden_size=96, head_dim=16, num_key_value_heads=1)
    _, batches = zoo.build("llama")
    result = fitted(model, batches, tmp_path)
    reasons = untreated(result)
    part = "model.layers.0.self_attn."
    assert {reasons[f"{part}{name}_proj.weight"] for name in "kv"} == {"target: kernel shape"}  # sixteen rows
    assert reasons[f"{part}q_proj.weight"] == "target: fused with what stays dense"
    assert f"{part}o_proj.weight" not in reasons


def test_a_head_that_vllm_does_not_read_quantized_stays_dense(tmp_path):
    model = zoo.language_model("OPTForCausalLM", dtype=torch.bfloat16, tie_word_embeddings=False)
    assert untreated(fitted(model, zoo.build("opt")[1], tmp_path))["lm_head.weight"] == "target: head"


# The loader's rules


def test_a_part_that_is_missing_is_told():
    with pytest.raises(ModelError, match="a.qkv_proj: vLLM makes it of q_proj, k_proj, v_proj, k_proj is not there"):
        layers(["a.q_proj", "a.v_proj"], {}, LLAMA)


def test_parts_of_a_layer_share_its_scheme():
    found = {layer.name: layer for layer in layers(QKV, {"config_groups": {"g": FOUR}}, LLAMA)}
    assert found["a.qkv_proj"].group is FOUR
    assert found["a.qkv_proj"].parts == tuple(QKV[:3])
    assert found["a.o_proj"].group is None


@pytest.mark.parametrize(
    "config",
    [
        {"config_groups": {"g": {**FOUR, "targets": FOUR["targets"][:2]}}},
        {"config_groups": {"g": FOUR}, "ignore": ["a.k_proj"]},
        {"config_groups": {"e": {**FOUR, "targets": ["a.v_proj"], "weights": {"num_bits": 8}}, "g": FOUR}},
    ],
    ids=["unnamed", "ignored", "wider"],
)
def test_parts_of_different_schemes_are_told(config):
    with pytest.raises(ModelError, match=r"a.qkv_proj: vLLM gives it one scheme, a.q_proj and a\.[kv]_proj have two"):
        layers(QKV, config, LLAMA)


def test_a_pattern_that_fits_the_whole_layer_is_told():
    """As one for values does that forgets the dot before them."""
    wide = {**FOUR, "targets": [r"re:.*v_proj$"], "weights": {"num_bits": 8}}
    with pytest.raises(ModelError, match="a.qkv_proj: is named as a whole too, and its parts otherwise"):
        layers(QKV, {"config_groups": {"g": FOUR, "w": wide}}, LLAMA)


def test_experts_of_one_block_share_one_scheme():
    names = [f"b.experts.{expert}.{part}" for expert in range(2) for part in ("gate_proj", "up_proj", "down_proj")]
    one = {**FOUR, "targets": ["re:.*\\.experts\\.[0-9]+\\.[a-z_]+$"]}
    (layer,) = layers(names, {"config_groups": {"g": one}}, LLAMA)
    assert layer.name == "b.experts"
    with pytest.raises(ModelError, match="b.experts: vLLM gives it one scheme"):
        layers(names, {"config_groups": {"g": {**one, "targets": ["re:.*(gate|up)_proj$"]}}}, LLAMA)


@pytest.fixture(scope="module")
def floats(tmp_path_factory):
    model, batches = zoo.build("llama", dtype=torch.bfloat16)
    folder = tmp_path_factory.mktemp("floats")
    fitted(model, batches, folder, method="float4")
    return folder / "out"


def changed(source, folder, **tensors):
    held = load_file(source / "model.safetensors")
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    left = {name: value for name, value in {**held, **tensors}.items() if value is not None}
    save_file(left, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_inputs_of_one_layer_have_one_scale(tmp_path):
    model, batches = zoo.build("llama", dtype=torch.bfloat16)
    fitted(model, batches, tmp_path, method="nearest bits=8 group=0 | activations scale=static")
    with pytest.raises(ModelError, match="qkv_proj: vLLM takes one scale of inputs for all of it, 2 are stored"):
        require_readable(changed(tmp_path / "out", tmp_path, **{"model.layers.1.self_attn.k_proj.input_scale": torch.tensor([7.0])}), LLAMA)


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"weight_global_scale": torch.tensor([7.0])}, "takes one global scale for all of it, 2 are stored"),
        ({"weight_scale": None}, "vLLM looks for weight_packed in torch.uint8 and a scale beside it, finds"),
        (
            {"weight_packed": torch.zeros(64, 31, dtype=torch.uint8)},
            r"weight_packed has \(64, 31\) numbers, which 64 columns in groups of 16",
        ),
    ],
)
def test_files_that_vllm_would_read_otherwise_are_told(change, sentence, floats, tmp_path):
    assert require_readable(floats, LLAMA) == 14
    name = "model.layers.1.self_attn.q_proj."
    with pytest.raises(ModelError, match=sentence):
        require_readable(changed(floats, tmp_path, **{name + part: value for part, value in change.items()}), LLAMA)


@pytest.mark.parametrize(
    "method, word",
    [
        ("nearest bits=4 group=32 | activations format=int4", "activations int4"),
        ("float4 format=mxfp4", "mxfp4"),
        ("float4 format=mxfp4 | activations format=mxfp4", "activations mxfp4"),
        ("nearest bits=4 group=32", None),
    ],
)
def test_what_vllm_computes_otherwise_is_told(method, word, tmp_path):
    model, batches = zoo.build("llama", dtype=torch.bfloat16)
    events = fitted(model, batches, tmp_path, method=method).receipt["events"]
    assert [event.partition(":")[0] for event in events if "vLLM" in event] == ([word] if word else [])
