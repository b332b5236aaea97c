"""Any class of Transformers, tiny: its config shrunk by rules for what configs call their numbers, and by a table where those do not do.

`zoo` holds a few architectures with settings chosen for their traits; this makes as many as can be made, to see what holds for all of them.
"""

from __future__ import annotations

import copy
import inspect
import re
from typing import Any

import torch
import transformers
from torch.utils._pytree import tree_leaves

from modicum.testing import zoo

# What numbers of configs are, by their names, and how large they are in a tiny model. The first pattern that fits decides; only numbers
# that are larger by default are changed.
_RULES: list[tuple[str, int]] = [
    (r"(_id|_index|_idx|seed|max_distance|_scale|_scaling.*|floor_scale|rescale_every|num_labels)$", 1 << 62),
    (r"(num_experts_per_tok|num_experts_per_token|moe_topk|moe_k|top_k|num_experts_per_topk)$", 2),
    (r"(n_group|topk_group|num_expert_groups?|n_groups|.*_n_groups)$", 1),
    (r"(n_shared_experts|num_shared_experts|moe_num_shared_experts)$", 1),
    (r"(.*n_routed_experts|.*num_experts|.*num_local_experts|zero_expert_num|moe_num_experts)$", 4),
    (r"(moe_intermediate_size|.*expert.*intermediate_size|expert_ffn_hidden_size|shared_intermediate_size)$", 32),
    (r".*intermediate_size.*|.*ffn.*(size|dim)|dff|dim_ff|feed_forward_size|d_inner$", 128),
    (r"(first_k_dense_replace|num_dense_layers|moe_layer_start_index|dense_layers?)$", 1),
    (r"(.*num_.*layers|n_layers?|.*_layers|num_blocks|depth)$", 3),
    (r"(.*(key|kv).*heads|num_kv_heads)$", 2),
    (r"(.*heads|.*n_head)$", 4),
    (r"(qk_rope_head_dim|qk_nope_head_dim|v_head_dim|.*head_dim|.*head_size|dim_head|kv_channels|rotary_dim|.*d_head|d_kv)$", 16),
    (r"(.*lora_rank|.*_rank|hc_lowrank|d_rel)$", 16),
    (r"(.*state_size|.*d_state|.*n_state)$", 16),
    (r"(index_topk|.*topk_blocks|.*window.*|.*chunk.*|.*block_size|mem_len|local_attention|rel_extent)$", 8),
    (r".*vocab.*", 256),
    (r"(.*max_position.*|n_positions|n_ctx|max_seq_len|context_length|.*max_.*positions|.*max_len.*|.*max_length)$", 64),
    (r"(.*hidden_(size|dim)|.*embed.*(size|dim)|emb_dim|d_model|dim_model.*|lru_width|.*_width|mamba_d_ssm|n_embd)$", 64),
    (r"(.*_dim|.*proj.*(size|dim))$", 64),
]  # fmt: skip
# What only some configs declare, and are small in.
_MORE: dict[str, Any] = {
    **{"lru_width": 64, "attention_window_size": 8, "linear_num_value_heads": 4, "linear_num_key_heads": 2},
    **{"linear_key_head_dim": 16, "linear_value_head_dim": 16, "initializer_factor": 1.0},
}
# Where the rules make a config that its own rules or its class refuse, or a model that is not small.
_EXCEPTIONS: dict[str, dict[str, Any]] = {
    "CohereCompassForCausalLM": {"layer_types": ["full_attention"] * 3, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "DbrxForCausalLM": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4},
    },
    "DeepseekV2ForCausalLM": {"num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "Dots1ForCausalLM": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "Dots3NoteForCausalLM": {"num_key_value_heads": 4},
    "GPTNeoForCausalLM": {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
    "Gemma3nForCausalLM": {
        "num_hidden_layers": 4, "num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 2,
        "activation_sparsity_pattern": [0.0] * 4,
    },
    "Lfm2MoeForCausalLM": {"layer_types": ["conv", "full_attention", "conv"]},
    "Mamba2ForCausalLM": {"num_heads": 8},
    "MusicgenForCausalLM": {"num_codebooks": 1},
    "MusicgenMelodyForCausalLM": {"num_codebooks": 1},
    "ReformerModelWithLMHead": {
        "is_decoder": True, "axial_pos_shape": [8, 8], "axial_pos_embds_dim": [16, 48], "attn_layers": ["local", "lsh"],
        "lsh_attn_chunk_length": 8, "local_attn_chunk_length": 8, "hash_seed": 0,
    },
    "XmodForCausalLM": {"default_language": "en_XX"},
    "xLSTMForCausalLM": {"chunk_size": 64},
    "Zamba2ForCausalLM": {"num_hidden_layers": 4, "layer_types": ["mamba", "hybrid", "mamba", "hybrid"], "n_mamba_heads": 4},
    "ZambaForCausalLM": {"num_hidden_layers": 6, "attn_layer_period": 3, "attn_layer_offset": 1, "num_key_value_heads": 4},
}  # fmt: skip


def config_for(name: str) -> Any:
    """A small config of the class of Transformers ``name``."""
    cls = getattr(transformers, name)
    config = _shrunk(cls.config_class, _EXCEPTIONS.get(name, {}))
    config.architectures = [name]
    return config


def build(name: str, seed: int = 0) -> transformers.PreTrainedModel:
    """The class of Transformers ``name``, tiny and random, with biases and norms off the zeros and ones they start with."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = getattr(transformers, name)(config_for(name)).eval()
    zoo._unsettle(model, torch.Generator().manual_seed(seed))
    return model


def _shrunk(cls: type, settings: dict[str, Any]) -> Any:
    declared = {name: parameter.default for name, parameter in inspect.signature(cls).parameters.items()}
    shared = {name: value for name, value in (zoo._SHARED | _MORE).items() if name in declared or name == "num_labels"}
    if "kv_lora_rank" in declared and "num_key_value_heads" in shared:
        shared["num_key_value_heads"] = shared["num_attention_heads"]  # latent attention has all
    ruled = {name: number for name, value in declared.items() if name not in shared and (number := _ruled(name, value)) is not None}
    towers = {name: _shrunk(tower, settings.get(name, {})) for name, tower in _towers(cls).items()}
    return cls(**shared | ruled | towers | {name: copy.deepcopy(value) for name, value in settings.items() if name not in towers})


def _towers(cls: type) -> dict[str, type]:
    """Kinds of the configs inside a config."""
    found = dict(getattr(cls, "sub_configs", {}))
    if any(tower is transformers.AutoConfig for tower in found.values()):  # which kind, only an instance says
        made = cls()
        found = {name: type(inner) for name in found if (inner := getattr(made, name, None)) is not None}
    return found


def _ruled(name: str, value: Any) -> int | None:
    if type(value) is not int:
        return None
    small = next((small for pattern, small in _RULES if re.match(pattern + r"\Z", name)), 1 << 62)
    return small if value > small else None


def causal_names() -> list[str]:
    """Classes of Transformers that are causal language models, without those of `zoo`."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    named = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    held = {entry.model for entry in (zoo._CORE | zoo._EXTRA).values()}
    return sorted({name if isinstance(name, str) else name[0] for name in named.values()} - held)


def other_names() -> list[str]:
    """Classes of Transformers that read texts, pictures and sounds and speak no language: encoders and their heads."""
    from transformers.models.auto import modeling_auto as auto

    kinds = (
        "MASKED_LM",
        "IMAGE_CLASSIFICATION",
        "SEMANTIC_SEGMENTATION",
        "OBJECT_DETECTION",
        "DEPTH_ESTIMATION",
        "CTC",
        "AUDIO_CLASSIFICATION",
    )
    tables = [getattr(auto, f"MODEL_FOR_{kind}_MAPPING_NAMES") for kind in kinds]
    held = {entry.model for entry in (zoo._CORE | zoo._EXTRA).values()}
    return sorted({name if isinstance(name, str) else name[0] for table in tables for name in table.values()} - held)


def batches(model: Any, count: int, seed: int = 3) -> list[dict[str, torch.Tensor]]:
    """Batches of two rows that the forward of ``model`` takes."""
    generator = torch.Generator().manual_seed(seed)
    return [_batch(model, generator) for _ in range(count)]


def _batch(model: Any, generator: torch.Generator) -> dict[str, torch.Tensor]:
    main = getattr(model, "main_input_name", "input_ids")
    if main == "pixel_values":
        size = getattr(model.config, "image_size", None)
        height, width = size if isinstance(size, list | tuple) else (size or 64, size or 64)
        return {main: torch.randn(2, getattr(model.config, "num_channels", 3), height, width, generator=generator)}
    if main == "input_values":
        return {main: torch.randn(2, 4000, generator=generator)}
    if main == "input_features":
        return {main: torch.randn(2, 48, getattr(model.config, "num_mel_bins", 80), generator=generator)}
    length = 32 if type(model).__name__.startswith("Reformer") else 24
    return {"input_ids": torch.randint(3, 250, (2, length), generator=generator)}


@torch.no_grad()
def outputs(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """What a model says of a batch: its logits, or the first of its outputs that is a floating tensor."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = model(**batch)
    logits = found.logits if hasattr(found, "logits") else None
    return (logits if logits is not None else next(leaf for leaf in tree_leaves(found) if _floating(leaf))).float()


def _floating(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and leaf.numel() > 0


def divergence(original: torch.Tensor, candidate: torch.Tensor) -> float:
    """Mean KL of logits over a vocabulary, else the squared error relative to the square."""
    if original.shape != candidate.shape:
        return float("inf")
    if original.ndim == 3 and original.shape[-1] == zoo.VOCABULARY:
        p, q = original.log_softmax(-1), candidate.log_softmax(-1)
        return float(torch.where(p.isneginf() & q.isneginf(), 0, p.exp() * (p - q)).sum(-1).mean())
    return float((original - candidate).square().sum() / original.square().sum().clamp_min(1e-30))
