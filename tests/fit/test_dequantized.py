"""Quantized checkpoints opened as the dense weights that they stand for: by the libraries that pack them, and by plain twins of their layouts."""

import hashlib
import json
import re
from functools import partial

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import modicum
from modicum.core.errors import ModelError
from modicum.models.dequantized.view import Dequantized
from modicum.models.open import open_model
from modicum.models.quiet import hushed
from modicum.receipt import evaluate
from modicum.testing import packed, spelling

GROUPS = {"type": "int", "strategy": "group"}
COMPRESSED = {
    "int4 groups": ("pack-quantized", GROUPS | {"num_bits": 4, "group_size": 32, "symmetric": True}),
    "int4 asymmetric": ("pack-quantized", GROUPS | {"num_bits": 4, "group_size": 32, "symmetric": False}),
    "int8 rows": ("pack-quantized", {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}),
    "int3 rows asymmetric": ("pack-quantized", {"num_bits": 3, "type": "int", "strategy": "channel", "symmetric": False}),
    "int8 whole": ("int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}),
    "int8 whole asymmetric": ("int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": False}),
    "float8 rows": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}),
    "float8 one": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True}),
    "float8 blocks": (
        "float-quantized", {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [48, 48], "symmetric": True},
    ),
    "nvfp4": (
        "nvfp4-pack-quantized",
        {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "symmetric": True, "scale_dtype": torch.float8_e4m3fn},
    ),
    "mxfp4": (
        "mxfp4-pack-quantized",
        {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32, "symmetric": True, "scale_dtype": torch.uint8},
    ),
    "mxfp6": (
        "mxfp6-pack-quantized",
        {"num_bits": 6, "type": "float", "strategy": "group", "group_size": 32, "symmetric": True, "scale_dtype": torch.uint8},
    ),
}  # fmt: skip
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}
SCRAMBLED = lambda width: torch.randperm(width, generator=torch.Generator().manual_seed(0))


def built(folder, how, said, model="LlamaForCausalLM", **settings):
    """A checkpoint whose linears are quantized, its dense values by name."""
    spelling.checkpoint(model, folder, **settings)
    return packed.checkpoint(folder, how, said)


def read(folder):
    """Every tensor of a checkpoint as it is shown."""
    config = transformers.AutoConfig.from_pretrained(folder)
    with Dequantized(folder, config.quantization_config, config.dtype) as shards:
        return {name: shards.read(name) for name in shards.names()}


def require_values(folder, dense, nearly=0.0):
    found = read(folder)
    assert set(found) == set(dense)
    for name, value in dense.items():
        torch.testing.assert_close(found[name].float(), value.float(), rtol=nearly, atol=0, msg=name)


def said(format, settings):
    plain = {name: str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value for name, value in settings.items()}
    return packed.compressed_config(format, **plain)


@pytest.mark.parametrize("kind", COMPRESSED)
def test_compressed_tensors_as_the_library_decodes_them(kind, tmp_path):
    format, settings = COMPRESSED[kind]
    dense = built(tmp_path, lambda name, value: packed.compressed(value, format, **settings), said(format, settings))
    # Floats of four bits are given back in bfloat16 there.
    require_values(tmp_path, dense, nearly=2**-7 if "fp4" in kind else 0.0)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("layout", ["gptq", "gptq_v2", "gptq_p"])
def test_gptq_as_its_layout_says(bits, layout, tmp_path):
    order = lambda value: SCRAMBLED(value.shape[1]) if layout != "gptq_v2" else None
    how = lambda name, value: packed.gptq(value, bits, 32, layout, order(value)) if "layers.0" in name else None
    require_values(tmp_path, built(tmp_path, how, GPTQ | {"checkpoint_format": layout}, num_hidden_layers=1))


# What the packages' own packing makes of ``given`` below: auto-gptq 0.7.1, gptqmodel 7.7.0 (planes), autoawq 0.2.9.
GOLDEN = {
    ("gptq", 2): "17e1e2dbe9ed022b", ("gptq", 3): "020a25e1fc8bc613", ("gptq", 4): "6b3d851c0f571076", ("gptq", 8): "c6c6303d99b908c1",
    ("gptq_p", 3): "0488c1a7f316ad5b", ("gptq_p", 5): "bba28b0dabfc5f4f", ("gptq_p", 6): "d1cc22176dd6c943", ("gptq_p", 7): "770e109b553ecf46",
    ("awq", 4): "0a700f968446119b",
}  # fmt: skip


@pytest.mark.parametrize("layout, bits", GOLDEN)
def test_the_twins_pack_as_the_packages_do(layout, bits):
    rows, columns, groups = torch.arange(64)[:, None], torch.arange(96)[None], torch.arange(3)[None]
    codes, zeros = (rows * 5 + columns * 3 + rows * columns // 7) % 2**bits, 1 + (rows * 3 + groups * 5) % (2**bits - 1)
    made = packed.awq_words(codes, zeros) if layout == "awq" else packed.gptq_words(codes, zeros, bits, layout)
    digest = hashlib.sha256()
    for name in sorted(made):
        digest.update(name.encode())
        digest.update(made[name].contiguous().numpy().tobytes())
    assert digest.hexdigest()[:16] == GOLDEN[layout, bits]


BLOCKS = {"quant_method": "bitsandbytes", "load_in_4bit": True}


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("type", ["nf4", "fp4"])
def test_bitsandbytes_in_four_bits(type, double, tmp_path):
    how = lambda name, value: packed.bitsandbytes(value, type, double, block=64 if "layers.0" in name else 128)
    require_values(tmp_path, built(tmp_path, how, BLOCKS | {"bnb_4bit_quant_type": type}, num_hidden_layers=1), nearly=1e-6)


def test_bitsandbytes_in_eight_bits(tmp_path):
    how = lambda name, value: packed.llm_int8(value) if name != "lm_head.weight" else None
    require_values(tmp_path, built(tmp_path, how, {"quant_method": "bitsandbytes", "load_in_8bit": True}, num_hidden_layers=1), nearly=1e-6)


# What bitsandbytes 0.50.2 makes of ``waves`` below.
QUANTIZED = {
    ("nf4", False): "a96deaa0ae93c66a", ("nf4", True): "13a13abc1424f4ff", ("fp4", False): "f5077eee413e1f23", ("fp4", True): "98644cca65fa7a60",
}  # fmt: skip


def waves():
    """Weights of 96 columns, so that blocks run on into the next row, no two as near to two levels."""
    return ((torch.arange(40 * 96) * 0.6180339887).frac() - 0.37).view(40, 96) * (1 + torch.arange(40)[:, None] / 16)


@pytest.mark.parametrize("type, double", QUANTIZED)
def test_the_twin_is_what_bitsandbytes_stores(type, double):
    made, _ = packed.bitsandbytes(waves(), type, double)
    digest = hashlib.sha256()
    for name in sorted(made):
        digest.update(name.encode())
        digest.update(made[name].contiguous().numpy().tobytes())
    assert digest.hexdigest()[:16] == QUANTIZED[type, double]


@pytest.mark.parametrize(
    "spoil, message",
    [
        ({"shape": [64, 63]}, "weight does not hold 4032 codes of four bits"),
        ({"shape": [64]}, r"the text beside it says shape [64] in blocks of 64"),
        ({"blocksize": 0}, "in blocks of 0"),
        ({"quant_type": "fp4"}, "the text beside it is not of nf4"),
        ({"dtype": "int8"}, "the text beside it says dtype int8"),
    ],
)
def test_bitsandbytes_whose_text_does_not_fit(spoil, message, tmp_path):
    def how(name, value):
        parts, dense = packed.bitsandbytes(value, "nf4")
        state = "weight.quant_state.bitsandbytes__nf4"
        text = json.dumps(json.loads(bytes(parts[state].tolist())) | spoil).encode()
        return (parts | {state: torch.tensor(list(text), dtype=torch.uint8)}, dense) if "q_proj" in name else None

    built(tmp_path, how, BLOCKS, num_hidden_layers=1)
    with pytest.raises(ModelError, match=re.escape(message)):
        open_model(tmp_path, allow_quantized_source=True)


def test_gptq_whose_groups_follow_each_other_need_no_index(tmp_path):
    def how(name, value):
        parts, dense = packed.gptq(value, 4, 32)
        return {part: tensor for part, tensor in parts.items() if part != "g_idx"}, dense

    require_values(tmp_path, built(tmp_path, how, GPTQ, num_hidden_layers=1))


@pytest.mark.parametrize("group", [32, 0])
def test_awq_as_its_layout_says(group, tmp_path):
    how = lambda name, value: packed.awq(value, group)
    require_values(tmp_path, built(tmp_path, how, {"quant_method": "awq", "bits": 4, "version": "gemm"}, num_hidden_layers=1))


@pytest.mark.parametrize("size", [[32, 32], [48, 40]])
def test_blocks_of_floats_also_where_rows_do_not_fill_them(size, tmp_path):
    how = lambda name, value: packed.float8(value, *size) if name != "lm_head.weight" else None
    require_values(tmp_path, built(tmp_path, how, {"quant_method": "fp8", "weight_block_size": size}))


def test_words_with_bits_free_and_columns_in_another_order(tmp_path):
    """As compressed-tensors packed three bits before 0.17, and dealt columns out to groups."""

    def how(name, value):
        order = SCRAMBLED(value.shape[1])
        groups = torch.empty_like(order)
        groups[order] = torch.arange(len(order)) // 32
        codes, scales, _ = packed.rounded(value, 3, groups)
        full = torch.nn.functional.pad(codes, (0, -codes.shape[1] % 10)).reshape(len(codes), -1, 10)
        words = sum(full[:, :, place] << 3 * place for place in range(10)).int()
        dense = (codes - 4).float() * scales.float()[:, groups]
        parts = {"weight_packed": words, "weight_shape": torch.tensor(value.shape), "weight_scale": scales, "weight_g_idx": groups.int()}
        return parts, dense

    require_values(tmp_path, built(tmp_path, how, said("pack-quantized", GROUPS | {"num_bits": 3, "group_size": 32}), num_hidden_layers=1))


def test_blocks_of_floats_as_transformers_decodes_them(tmp_path):
    decode = transformers.integrations.finegrained_fp8.Fp8Dequantize(None)._dequantize_one

    def how(name, value):
        parts, _ = packed.float8(value, 32, 32)
        return parts, decode(parts[""], parts["weight_scale_inv"], torch.bfloat16)

    require_values(tmp_path, built(tmp_path, how, {"quant_method": "fp8", "weight_block_size": [32, 32]}, dtype=torch.bfloat16))


INT4 = COMPRESSED["int4 groups"]
KINDS = {
    "compressed-tensors": (partial(packed.compressed, format=INT4[0], **INT4[1]), said(*INT4)),
    "fp8": (partial(packed.float8, height=32, width=32), {"quant_method": "fp8", "weight_block_size": [32, 32]}),
    "gptq": (partial(packed.gptq, bits=4, group=32), GPTQ),
    "awq": (partial(packed.awq, group=32), {"quant_method": "awq"}),
}


def test_the_model_that_transformers_makes_of_it(tmp_path):
    how, told = KINDS["compressed-tensors"]
    built(
        tmp_path, lambda name, value: how(value) if name != "lm_head.weight" else None, told | {"ignore": ["lm_head"]}, dtype=torch.bfloat16
    )
    ids = torch.arange(3, 40)[None]
    with hushed(), torch.no_grad():
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits
    model = open_model(tmp_path, allow_quantized_source=True)
    model.weights.load(model.weights.names)
    torch.testing.assert_close(model.module(ids).logits, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mixture_whose_experts_are_quantized(kind, tmp_path):
    how, told = KINDS[kind]
    mixture = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "num_hidden_layers": 1}
    dense = built(tmp_path / "packed", lambda name, value: how(value), told, "Qwen3MoeForCausalLM", **mixture)
    spelling.checkpoint("Qwen3MoeForCausalLM", tmp_path / "dense", **mixture)
    save_file(
        {name: value.float().contiguous() for name, value in dense.items()}, tmp_path / "dense" / "model.safetensors", {"format": "pt"}
    )
    wanted, found = open_model(tmp_path / "dense"), open_model(tmp_path / "packed", allow_quantized_source=True)
    assert any("experts" in name for name in found.units) and set(wanted.weights.names) == set(found.weights.names)
    for name in wanted.weights.names:
        assert torch.equal(wanted.weights.read(name), found.weights.read(name)), name


def test_without_the_flag_it_is_refused_in_a_sentence_that_names_it(tmp_path):
    built(tmp_path, lambda name, value: packed.awq(value, 32), {"quant_method": "awq"})
    with pytest.raises(ModelError, match=r"quantized already \(AWQ\), and what is made of them loses twice\. .*--allow-quantized-source"):
        open_model(tmp_path)


@pytest.mark.parametrize(
    "told, message",
    [
        ({"quant_method": "quanto", "weights": "int4"}, "must not be quantized already but by compressed-tensors, gptq"),
        ({"quant_method": "awq", "version": "gemv"}, "must be stored as AWQ does, is not: its packing is 'gemv'"),
        (
            {"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"},
            "its layout is 'marlin', which is none of gptq, gptq_v2, gptq_p",
        ),
    ],
)
def test_what_is_not_read_here_is_refused(told, message, tmp_path):
    built(tmp_path, lambda name, value: packed.awq(value, 32), told)
    with pytest.raises(ModelError, match=re.escape(message)):
        open_model(tmp_path, allow_quantized_source=True)


def test_a_missing_part_is_named(tmp_path):
    built(tmp_path, lambda name, value: packed.awq(value, 32), {"quant_method": "awq"})
    path = tmp_path / "model.safetensors"
    save_file({name: value for name, value in load_file(path).items() if not name.endswith("q_proj.scales")}, path)
    with pytest.raises(ModelError, match=r"q_proj.weight must be stored as AWQ does, is not: scales is missing"):
        open_model(tmp_path, allow_quantized_source=True)


def test_a_fit_tells_what_was_rounded_before(tmp_path):
    how = lambda name, value: packed.gptq(value, 8 if "down" in name else 4, 32)
    built(tmp_path / "model", how, GPTQ | {"desc_act": False})
    (tmp_path / "text.txt").write_text("a quick brown fox " * 40)
    said = {"data": str(tmp_path / "text.txt"), "samples": 2, "tokens": 16, "test_samples": 1}
    with hushed():
        receipt = modicum.fit(
            tmp_path / "model", method="nearest bits=4 group=32", out=tmp_path / "out", allow_quantized_source=True, **said
        ).receipt
    events = "\n".join(receipt["events"])
    assert "3 came as int8 in 4 groups (GPTQ), model.layers.*.mlp.down_proj.weight;" in events
    assert "came as int4 in 2 groups (GPTQ)" in events and "model.layers.*.self_attn.q_proj.weight" in events
    assert "quantization_config" not in transformers.AutoConfig.from_pretrained(tmp_path / "model").to_diff_dict().get("text_config", {})
    assert open_model(tmp_path / "out", allow_quantized_source=True).units


def test_what_no_loader_here_takes_is_judged_by_what_it_stands_for(tmp_path):
    spelling.checkpoint("LlamaForCausalLM", tmp_path / "original")
    built(tmp_path / "packed", lambda name, value: packed.gptq(value, 8, 32), GPTQ)
    (tmp_path / "text.txt").write_text("a quick brown fox " * 40)
    found = evaluate(tmp_path / "packed", reference=tmp_path / "original", data=str(tmp_path / "text.txt"), samples=1, tokens=16)
    assert 0 < found["quality"]["mean"] < 0.01
    assert any("read as what their codes stand for, its own loader does not run here" in note for note in found["data"]["notes"])


def test_stacks_of_experts_in_four_bit_floats_as_transformers_decodes_them(tmp_path):
    how = lambda name, value: packed.mxfp4(value) if "experts" in name else None
    dense = built(
        tmp_path, how, {"quant_method": "mxfp4"}, "GptOssForCausalLM", dtype=torch.bfloat16, num_local_experts=4, num_hidden_layers=1
    )
    require_values(tmp_path, dense)
    decode, stored = transformers.integrations.mxfp4.convert_moe_packed_tensors, load_file(tmp_path / "model.safetensors")
    model = open_model(tmp_path, allow_quantized_source=True)
    for name in ("model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.experts.down_proj"):
        assert torch.equal(model.weights.read(name), decode(stored[f"{name}_blocks"], stored[f"{name}_scales"]))
    assert any("experts" in name for name in model.units)
