import json
import random

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, GptOssConfig, LlamaConfig, Qwen2Config, Qwen3MoeConfig

from modicum.core.errors import SettingError
from modicum.testing import random_checkpoint, zoo

EVERY = zoo.names() + zoo.extra_names()
# One of each kind in the short form; in the long one all.
SHORT = {"llama", "qwen3_moe", "gpt2", "mamba", "whisper", "cnn", "bert", "mlp", "t5", "clip", "opt", "deepseek_v3"}
every_name = pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in SHORT else pytest.mark.slow) for name in EVERY])
SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "num_key_value_heads": 2, "head_dim": 8}


def output(model, batch):
    with torch.no_grad():
        found = model(**batch)
    return found if isinstance(found, torch.Tensor) else found[0]


def random_states():
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()


@every_name
def test_an_entry_builds_the_same_model_twice_and_leaves_the_random_state(name):
    before = random_states()
    (first, batches), (second, again) = zoo.build(name, seed=3), zoo.build(name, seed=3)
    other, _ = zoo.build(name, seed=4)
    assert random_states() == before
    assert not any(module.training for module in first.modules())
    weights, same, different = first.state_dict(), second.state_dict(), other.state_dict()
    assert all(torch.equal(weights[key], same[key]) for key in weights)
    floats = [key for key in weights if weights[key].is_floating_point()]
    assert sum(torch.equal(weights[key], different[key]) for key in floats) <= 0.1 * len(floats)
    assert all(torch.equal(a[key], b[key]) for a, b in zip(batches, again) for key in a)
    assert sum(weight.numel() for weight in first.parameters()) < 500_000


@every_name
def test_an_entry_runs_its_batches_and_depends_on_every_input(name):
    model, batches = zoo.build(name)
    outputs = [output(model, batch) for batch in batches]
    assert [len(next(iter(batch.values()))) for batch in batches] == [2, 2, 2, 1]
    assert all(torch.isfinite(found).all() for found in outputs) and outputs[0].std() > 0.05
    for key in batches[0].keys() - {"attention_mask"}:
        changed = output(model, batches[0] | {key: batches[1][key]})
        assert (changed - outputs[0]).abs().mean() > 0.05 * outputs[0].abs().mean(), key


@every_name
def test_one_sample_of_a_batch_does_not_touch_the_other(name):
    model, batches = zoo.build(name)
    alone = output(model, {key: tensor[:1] for key, tensor in batches[0].items()})
    together = output(model, batches[0])[:1]
    torch.testing.assert_close(together[..., : alone.shape[-1]], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "mamba", "t5", "clip", "resnet", "cnn"])
def test_half_precision_is_that_of_a_loaded_checkpoint(name):
    model, batches = zoo.build(name, dtype=torch.bfloat16)
    assert all(weight.dtype == torch.bfloat16 for weight in model.parameters())
    assert all(buffer.dtype == torch.float32 for key, buffer in model.named_buffers() if key.endswith("inv_freq"))
    assert all(torch.isfinite(output(model, batch)).all() for batch in batches)
    reference, full = zoo.build(name)
    exact = output(reference, full[0])
    assert (output(model, batches[0]) - exact).abs().mean() < 0.1 * exact.abs().mean()


def test_text_batches_differ_in_length():
    assert [batch["input_ids"].shape[1] for batch in zoo.build("llama")[1]] == [24, 24, 17, 32]


def test_entries_have_the_traits_they_are_there_for():
    built = {name: zoo.build(name)[0] for name in zoo.names()}
    config = {name: model.config for name, model in built.items() if hasattr(model, "config")}
    assert config["mistral"].sliding_window < min(zoo._LENGTHS)
    assert built["qwen2"].lm_head.weight is built["qwen2"].model.embed_tokens.weight
    assert config["qwen2"].num_key_value_heads < config["qwen2"].num_attention_heads
    assert [hasattr(layer.mlp, "experts") for layer in built["qwen3_moe"].model.layers] == [False, True, True, True]
    assert config["albert"].num_hidden_layers >= 3 and config["albert"].num_hidden_groups == 1
    assert any(isinstance(module, torch.nn.Conv2d) and module.groups > 1 for module in built["cnn"].modules())
    assert not any(getattr(one, "use_cache", False) for one in config.values())


def test_the_rows_of_linear_layers_fit_groups_of_32():
    for name in EVERY:
        linears = [module for module in zoo.build(name)[0].modules() if isinstance(module, torch.nn.Linear)]
        assert linears and all(linear.in_features % 32 == 0 for linear in linears), name


def test_tied_twin_is_tied_grouped_and_packs_in_256():
    model, batches = zoo.tied_twin()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    assert all(module.in_features % 256 == 0 for module in model.modules() if isinstance(module, torch.nn.Linear))
    assert 256 < batches[0]["input_ids"].max() < 1024
    assert torch.isfinite(output(model, batches[0])).all()


def test_an_unknown_name_offers_the_near_ones():
    with pytest.raises(SettingError, match=r"zoo: name must be .* got 'lama'\. Did you mean .*llama"):
        zoo.build("lama")


CONFIGS = {
    "llama": LlamaConfig(**SMALL),
    "tied": Qwen2Config(**SMALL, num_key_value_heads=2, tie_word_embeddings=True),
    "qwen3_moe": Qwen3MoeConfig(**SMALL, **EXPERTS),
    "gpt_oss": GptOssConfig(**SMALL, num_key_value_heads=2, head_dim=8, num_local_experts=4, num_experts_per_tok=2),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_random_checkpoint_loads_without_a_key_missing_or_left_over(name, tmp_path):
    before, told = random_states(), CONFIGS[name].to_dict()
    assert random_checkpoint(tmp_path, CONFIGS[name], shard_bytes=20_000) == tmp_path
    assert random_states() == before and CONFIGS[name].to_dict() == told
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    assert model.dtype == torch.bfloat16 and type(model).__name__ == model.config.architectures[0]
    loaded = model.state_dict()
    assert (loaded["model.norm.weight"] == 1).all()
    for key, weight in loaded.items():
        if weight.ndim > 1 and not key.endswith("bias"):
            assert 0.018 < weight.float().std() < 0.022, key
    assert len({tuple(weight.flatten()[:4].tolist()) for weight in loaded.values() if weight.ndim > 1 and weight.any()}) > 2 * 4


def test_a_random_checkpoint_has_the_same_values_in_any_number_of_shards(tmp_path):
    one, many = (random_checkpoint(tmp_path / str(size), CONFIGS["tied"], shard_bytes=size) for size in (1 << 20, 9_000))
    assert len(list(one.glob("*.safetensors"))) == 1
    weights = {}
    for directory in (one, many):
        index = json.loads((directory / "model.safetensors.index.json").read_text())
        weights[directory] = {}
        for key, file in index["weight_map"].items():
            with safe_open(directory / file, "pt") as shard:
                weights[directory][key] = shard.get_tensor(key)
        assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in weights[directory].values())
        assert "lm_head.weight" not in index["weight_map"]
    assert weights[one].keys() == weights[many].keys()
    assert all(torch.equal(weights[one][key], weights[many][key]) for key in weights[one])
    sizes = [file.stat().st_size for file in many.glob("*.safetensors")]
    assert len(sizes) > 3 and max(sizes) < 9_000 + 2_000  # the names and offsets come on top


def test_a_random_checkpoint_refuses_what_it_cannot_do(tmp_path):
    with pytest.raises(SettingError, match="shard_bytes must be positive, got 0"):
        random_checkpoint(tmp_path, CONFIGS["llama"], shard_bytes=0)
    random_checkpoint(tmp_path, CONFIGS["llama"])
    with pytest.raises(SettingError, match="must hold no safetensors files"):
        random_checkpoint(tmp_path, CONFIGS["llama"])
