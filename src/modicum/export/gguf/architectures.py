"""What a converter must know of each architecture beyond the names of its tensors: one row each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch

from modicum.export.gguf.fields import Value

Key = str | Callable[[Any], "Value | None"]
Order = Callable[[int, Any], torch.Tensor]


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp's model of an architecture is told, and where it differs from that of Transformers.

    ``keys`` of the head, each the name of a setting of the config or what makes the value of it (None: left out); ``expects`` settings whose value
    is not told, because only these values are computed there; ``orders`` of rows by kind of tensor; ``added`` to the weights of norms;
    ``splits`` of a stack of experts into several, its rows divided evenly; ``windows`` whether blocks that see a window alone are told apart;
    ``apart`` the architecture by which the same is computed with blocks of different widths, where there is one.
    """

    name: str
    classes: tuple[str, ...]
    keys: Mapping[str, Key]
    expects: Mapping[str, tuple[Any, ...]] = field(default_factory=lambda: MappingProxyType({}))
    orders: Mapping[str, Order] = field(default_factory=lambda: MappingProxyType({}))
    splits: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    added: float = 0.0
    windows: bool = False
    apart: str = ""


def heads(config: Any) -> tuple[int, int]:
    """Query heads, and heads of keys and values."""
    count = config.num_attention_heads
    return count, getattr(config, "num_key_value_heads", None) or count


def head_width(config: Any) -> int:
    """Columns of one head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def rope(config: Any, kind: str = "full_attention") -> dict[str, Any]:
    """How positions turn; of a config with several kinds of attention, in one of them."""
    found = getattr(config, "rope_parameters", None) or {}
    return dict(found.get(kind, found))


def _turned(config: Any) -> int:
    """Columns of a head that turn."""
    return int(head_width(config) * rope(config).get("partial_rotary_factor", 1.0))


def _paired(rows: int, config: Any) -> torch.Tensor:
    """Rows of queries or keys, so that columns which turn together stand side by side and not half a head apart."""
    width = head_width(config)
    return torch.arange(rows).reshape(-1, 2, width // 2).transpose(1, 2).reshape(-1)


def _falcon_groups(config: Any) -> int:
    if config.new_decoder_architecture:
        return config.num_kv_heads
    return 1 if config.multi_query else config.num_attention_heads


def _apart(rows: int, config: Any) -> torch.Tensor:
    """Rows of queries, keys and values that stand in groups, each kind by itself."""
    groups, width = _falcon_groups(config), head_width(config)
    found = torch.arange(rows).reshape(groups, -1, width)
    return torch.cat([found[:, :-2].reshape(-1), found[:, -2].reshape(-1), found[:, -1].reshape(-1)])


def _scaling(name: str, *types: str) -> Key:
    """A number that rotary positions are stretched by, where they are in one of these ways."""
    return lambda config: rope(config).get(name) if rope(config).get("rope_type") in types else None


def _window(config: Any) -> int | None:
    return config.sliding_window if any(_pattern(config) or ()) else None


def _pattern(config: Any) -> list[bool] | None:
    """Which blocks see a window alone."""
    return [kind == "sliding_attention" for kind in config.layer_types]


_PROMPT: dict[str, Key] = {
    "context_length": "max_position_embeddings", "embedding_length": "hidden_size", "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size", "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": lambda config: heads(config)[1],
}  # fmt: skip
_ROTARY: dict[str, Key] = {
    "rope.dimension_count": _turned, "rope.freq_base": lambda config: float(rope(config)["rope_theta"]),
    "rope.scaling.type": lambda config: {"linear": "linear", "yarn": "yarn", "longrope": "longrope"}.get(rope(config)["rope_type"]),
    "rope.scaling.factor": _scaling("factor", "linear", "yarn"),
    "rope.scaling.original_context_length": _scaling("original_max_position_embeddings", "yarn"),
}  # fmt: skip
_WIDTHS: dict[str, Key] = {"attention.key_length": head_width, "attention.value_length": head_width}
_RMS: dict[str, Key] = {"attention.layer_norm_rms_epsilon": "rms_norm_eps"}
_DECODER = _PROMPT | _ROTARY | _WIDTHS | _RMS
_SOFT: dict[str, Key] = {
    "attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping",
    "attention.sliding_window": _window, "attention.sliding_window_pattern": _pattern,
}  # fmt: skip
_SILU = {"hidden_act": ("silu",)}
_GELU = {"hidden_activation": ("gelu_pytorch_tanh",), "use_bidirectional_attention": (None, False)}

ARCHITECTURES = (
    Architecture(
        "llama", ("LlamaForCausalLM", "MistralForCausalLM"), _DECODER | {"vocab_size": "vocab_size"}, _SILU,
        orders={"attn_q": _paired, "attn_k": _paired}, apart="deci",
    ),
    Architecture("qwen2", ("Qwen2ForCausalLM",), _DECODER, _SILU),
    Architecture("qwen3", ("Qwen3ForCausalLM",), _DECODER, _SILU),
    Architecture(
        "qwen3moe", ("Qwen3MoeForCausalLM",),
        _DECODER | {
            "expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok",
            "expert_feed_forward_length": "moe_intermediate_size",
        },
        _SILU | {"norm_topk_prob": (True,), "mlp_only_layers": ([], None), "decoder_sparse_step": (1,)},
        splits={"gate_up_proj": ("ffn_gate_exps", "ffn_up_exps"), "down_proj": ("ffn_down_exps",)},
    ),
    Architecture("gemma2", ("Gemma2ForCausalLM",), _DECODER | _SOFT, _GELU, added=1.0, windows=True),
    Architecture(
        "gemma3", ("Gemma3ForCausalLM",),
        _DECODER | {name: key for name, key in _SOFT.items() if name != "attn_logit_softcapping"}
        | {"rope.freq_base_swa": lambda config: float(rope(config, "sliding_attention")["rope_theta"])},
        _GELU | {"attn_logit_softcapping": (None,)}, added=1.0, windows=True,
    ),
    Architecture(
        "phi3", ("Phi3ForCausalLM",),
        _DECODER | {
            "rope.scaling.original_context_length": "original_max_position_embeddings", "attention.sliding_window": lambda config: 0,
        },
        _SILU,
    ),
    Architecture("olmo2", ("Olmo2ForCausalLM",), _DECODER, _SILU),
    Architecture(
        "stablelm", ("StableLmForCausalLM",),
        _PROMPT | _ROTARY | {"attention.layer_norm_epsilon": "layer_norm_eps", "use_parallel_residual": "use_parallel_residual"},
        _SILU | {"qk_layernorm": (False,)},
    ),
    Architecture(
        "falcon", ("FalconForCausalLM",),
        _PROMPT | _ROTARY | {
            "feed_forward_length": "ffn_hidden_size", "attention.head_count_kv": _falcon_groups,
            "attention.layer_norm_epsilon": "layer_norm_epsilon", "tensor_data_layout": lambda config: "jploski",
        },
        {"activation": ("gelu",), "alibi": (False,), "bias": (False,), "parallel_attn": (True,)}, orders={"attn_qkv": _apart},
    ),
    Architecture(
        "gpt2", ("GPT2LMHeadModel",),
        {
            "context_length": "n_positions", "embedding_length": "n_embd", "block_count": "n_layer", "attention.head_count": "n_head",
            "feed_forward_length": lambda config: config.n_inner or 4 * config.n_embd,
            "attention.layer_norm_epsilon": "layer_norm_epsilon",
        },
        {"activation_function": ("gelu_new",), "scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,),
         "add_cross_attention": (False,)},
    ),
    Architecture(
        "mamba", ("MambaForCausalLM",),
        {
            "context_length": lambda config: 2**20, "embedding_length": "hidden_size", "feed_forward_length": lambda config: 0,
            "attention.head_count": lambda config: 0, "block_count": "num_hidden_layers", "ssm.conv_kernel": "conv_kernel",
            "ssm.inner_size": "intermediate_size", "ssm.state_size": "state_size", "ssm.time_step_rank": "time_step_rank",
            "attention.layer_norm_rms_epsilon": "layer_norm_epsilon", "ssm.dt_b_c_rms": lambda config: False,
        },
        _SILU | {"use_bias": (False,), "use_conv_bias": (True,)},
    ),
)  # fmt: skip


def row_of(cls: type) -> Architecture | None:
    """The row of a model's class; None where there is none."""
    return next((row for row in ARCHITECTURES if cls.__name__ in row.classes), None)
