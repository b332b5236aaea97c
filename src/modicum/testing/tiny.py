"""Any class of Transformers, tiny: its config shrunk by rules for what configs call their numbers, and by a table where those do not do.

`zoo` holds a few architectures with settings chosen for their traits; this makes as many as can be made, to see what holds for all of them.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import torch
import transformers

from modicum.export.small import narrow, parts_of
from modicum.models.open import skeleton
from modicum.testing import inputs, zoo
from modicum.testing.inputs import batches

__all__ = ["batches", "build", "causal_names", "config_for", "made"]

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
# By what widths, and those of heads, are divided where the rules do not do: the first that work; experts that are left, and parameters of all.
_DIVISORS, _EXPERTS, _MOST = ((8, 4), (8, 2), (4, 2), (4, 1), (2, 1), (1, 1)), 4, 5_000_000
_PICTURE = r"(image|img|input)_(size|resolution)$"
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
    return _built(name, config_for(name), seed)


def _built(name: str, config: Any, seed: int) -> transformers.PreTrainedModel:
    config.architectures = [name]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = getattr(transformers, name)(config).eval()
    zoo._unsettle(model, torch.Generator().manual_seed(seed))
    return model


def made(name: str, seed: int = 0) -> tuple[transformers.PreTrainedModel, Callable[[torch.Generator], dict[str, torch.Tensor]]]:
    """The class of Transformers ``name``, tiny and random, by the first config that works, with what makes batches for it.

    Configs are shrunk by the rules of this module, else by dividing the numbers of the default one. Raises what the first one raised.
    """
    first: Exception | None = None
    for config in _configs(name):
        try:
            if size_of(getattr(transformers, name), config) <= _MOST:
                model = _built(name, config, seed)
                return model, inputs.maker(model)
        except Exception as error:  # whatever a class raises at numbers that it was not made for
            first = first or error
    raise first or ValueError("none of its configs is small")


def size_of(cls: type, config: Any) -> int:
    """Parameters of the model of a config, without making it."""
    return sum(value.numel() for value in skeleton(cls, copy.deepcopy(config)).parameters())


def _configs(name: str) -> Iterator[Any]:
    with suppress(Exception):  # what configs raise at numbers that the rules made
        ruled = config_for(name)
        for part in parts_of(ruled):
            _few_tokens(part)
        yield ruled
    for (by, heads), shallow, near in itertools.product(_DIVISORS, (True, False), (True, False)):
        config = _default(getattr(transformers, name).config_class)
        for part in parts_of(config):
            pictures = {name: value for name, value in vars(part).items() if re.search(_PICTURE, name)}
            narrow(part, by, heads, _EXPERTS)
            vars(part).update(pictures)
            _lessened(part, by, shallow, near)
        yield config


def _lessened(config: Any, by: int, shallow: bool, near: bool) -> None:
    """Give a config few tokens and narrow lists, few blocks where ``shallow``, and small pictures where ``near``."""
    _few_tokens(config)
    for name, value in list(vars(config).items()):
        listed = isinstance(value, list | tuple) and len(value) > 0
        if shallow and re.search(r"(layers?|blocks)$", name) and type(value) is int:
            setattr(config, name, min(value, 3))
        elif shallow and re.search(r"depths$|layer_types$", name) and listed:
            setattr(config, name, list(value[:3]) if isinstance(value[0], str) else [min(count, 2) for count in value])
        elif near and re.search(_PICTURE, name):
            patch = getattr(config, "patch_size", None)
            small = 4 * patch if type(patch) is int and patch >= 8 else 64
            setattr(config, name, type(value)([small] * len(value)) if listed else small)
        elif re.search(r"(sizes|dims?|channels)$", name) and listed and all(type(item) is int and item % by == 0 for item in value):
            setattr(config, name, type(value)(max(item // by, 8) for item in value))
        elif getattr(value, "model_type", "") == "timm_backbone":
            outs = [f"stage{index}" for index in range(1, 5)][-len(value.out_indices or [0]) :]
            sizes: dict[str, Any] = {"embedding_size": 16, "hidden_sizes": [16, 16, 32, 32], "depths": [1] * 4, "out_features": outs}
            setattr(config, name, transformers.ResNetConfig(**sizes))


def _few_tokens(config: Any) -> None:
    """Give a config few tokens, those that stand for something else than text at the end."""
    special = itertools.count(zoo.VOCABULARY - 6)
    for name, value in list(vars(config).items()):
        if re.search(r"vocab(ulary)?_size$", name) and type(value) is int and value > 32:
            setattr(config, name, zoo.VOCABULARY)
        elif re.search(r"_token_(id|index)$", name) and type(value) is int and value > 2:
            setattr(config, name, min(next(special), zoo.VOCABULARY - 1))


def _default(cls: type) -> Any:
    """The config that a class of configs makes of itself, or an empty one where it makes none."""
    try:
        return cls()
    except Exception:  # whatever a class raises that must be told what it is
        return transformers.PreTrainedConfig()


def _shrunk(cls: type, settings: dict[str, Any]) -> Any:
    declared = {name: parameter.default for name, parameter in inspect.signature(cls).parameters.items()}
    listed = {name for name, value in vars(_default(cls)).items() if isinstance(value, list | tuple | dict)}
    shared = {
        name: value for name, value in (zoo._SHARED | _MORE).items() if name not in listed and (name in declared or name == "num_labels")
    }
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
