"""The config of a model in a GGUF file: what its head says in the words of Transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from modicum.core.errors import ModelError, near, quoted
from modicum.export.gguf.architectures import ARCHITECTURES, Architecture
from modicum.export.gguf.metadata import factors
from modicum.export.gguf.reader import GgufFile
from modicum.models.open import check_counts

# Ways in which published models slow their rotary positions; a file holds what comes of it alone.
_SLOWED = [
    {"factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192} for factor in (8.0, 32.0)
]
_NEEDED = ("block_count", "embedding_length", "attention.head_count", "context_length")
_MARKS = {"bos": "bos", "eos": "eos", "padding": "pad"}


def row_of_file(file: GgufFile) -> Architecture:
    """The row of the architecture that a file names. Raises ``ModelError``."""
    name = file.values.get("general.architecture")
    row = next((row for row in ARCHITECTURES if row.name == name), None)
    if name and any(row.apart == name for row in ARCHITECTURES):
        raise ModelError(
            f"{file.path}: its blocks must be of one width, which is all that a config says, are not ({name}). modicum.load and modicum eval take "
            "the folder that fit wrote it to."
        )
    if row is None:
        known = [row.name for row in ARCHITECTURES]
        raise ModelError(f"{file.path}: its architecture must be one that is known, is {quoted(repr(name))}. {near(str(name), known)}")
    return row


def config_of(file: GgufFile, row: Architecture, dtype: torch.dtype) -> Any:
    """Transformers' config of the model in a file. Raises ``ModelError`` where the file says what that cannot, or not enough."""
    import transformers

    said = _Said(file, row)
    try:
        body = said.body() | _OWN.get(row.name, lambda said: {})(said)
        _bounded(body, file)
        cls = getattr(transformers, row.classes[0])
        config = cls.config_class(**body, architectures=[cls.__name__], dtype=dtype)
    except ModelError:
        raise
    except Exception as error:  # whatever a config's own rules raise
        raise ModelError(
            f"{file.path}: its head must describe a model of {row.name}, does not ({quoted(error)}). Fetch it again."
        ) from None
    _require_turns(file, config)
    return config


class _Said:
    """What a head says, by the names of its architecture."""

    def __init__(self, file: GgufFile, row: Architecture):
        self.file, self.row = file, row

    def __call__(self, key: str, other: Any = None) -> Any:
        value = self.file.values.get(f"{self.row.name}.{key}", other)
        if isinstance(value, list) and len(set(map(str, value))) == 1:
            return value[0]
        return value

    def has(self, tensor: str) -> bool:
        return tensor in self.file.tensors

    def body(self) -> dict[str, Any]:
        """Settings that most architectures have. Raises ``ValueError`` where one that all must have is missing."""
        if missing := [key for key in _NEEDED if self(key) is None]:
            raise ValueError(f"it lacks {missing[0]}")
        body = {source: self(key) for key, source in self.row.keys.items() if isinstance(source, str) and self(key) is not None}
        body |= {name: allowed[0] for name, allowed in self.row.expects.items() if allowed[0] is not None}
        if (heads := self("attention.head_count_kv")) is not None:
            body["num_key_value_heads"] = heads
        if (width := self("attention.key_length")) is not None:
            body["head_dim"] = width
        body["vocab_size"] = self.file.tensors["token_embd.weight"].shape[0]
        body["tie_word_embeddings"] = not self.has("output.weight")
        if "rope.freq_base" in self.row.keys:
            body["rope_parameters"] = self.rope(width or self("embedding_length") // self("attention.head_count"))
        for mark, name in _MARKS.items():
            body[f"{name}_token_id"] = self.file.values.get(f"tokenizer.ggml.{mark}_token_id")
        return body

    def rope(self, width: int) -> dict[str, Any]:
        """How positions turn."""
        found = {"rope_type": "default", "rope_theta": self("rope.freq_base", 10000.0)}
        if (turned := self("rope.dimension_count", width)) != width:
            found["partial_rotary_factor"] = turned / width
        if (kind := self("rope.scaling.type", "none")) != "none":
            found |= {"rope_type": kind, "factor": self("rope.scaling.factor")}
            if kind == "yarn":
                found["original_max_position_embeddings"] = self("rope.scaling.original_context_length")
        if self.has("rope_freqs.weight"):
            found |= self._slowed(found["rope_theta"], width)
        return {name: value for name, value in found.items() if value is not None}

    def _slowed(self, theta: float, width: int) -> dict[str, Any]:
        import transformers

        held = self.file.read("rope_freqs.weight")
        for said in _SLOWED:
            rope = said | {"rope_type": "llama3", "rope_theta": theta}
            made = factors(transformers.LlamaConfig(head_dim=width, rope_parameters=rope, max_position_embeddings=1 << 17))[
                "rope_freqs.weight"
            ]
            if made.shape == held.shape and torch.allclose(made, held, rtol=1e-4):
                return rope
        raise ValueError("its rotary positions are slowed in a way of their own")


def _require_turns(file: GgufFile, config: Any) -> None:
    """Raise ``ModelError`` for tensors of rotary positions that the config does not give."""
    wanted = factors(config)
    for name in ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"):
        if (name in file.tensors) != (name in wanted):
            raise ModelError(f"{file.path}: how positions turn ({name}) must be what its settings say, is not. Start from the original.")


def _bounded(body: Mapping[str, Any], file: GgufFile) -> None:
    """Raise ``ValueError`` for sizes that no tensor of the file has: something is built of each."""
    check_counts(dict(body), file.path)
    widest = max(size for tensor in file.tensors.values() for size in tensor.shape)
    for name, value in body.items():
        if isinstance(value, list) and value and name != "layer_types":
            raise ValueError(f"{name} differs from block to block")
        most = 1 << 27 if name in ("max_position_embeddings", "original_max_position_embeddings", "sliding_window") else max(widest, 1024)
        if isinstance(value, int) and not isinstance(value, bool) and not -1 <= value <= most:
            raise ValueError(f"{name} is {value}")


def _window(said: _Said, period: int) -> dict[str, Any]:
    """Which blocks see a window alone, and how far."""
    pattern = said.file.values.get(f"{said.row.name}.attention.sliding_window_pattern")
    count = said("block_count")
    if count > len(said.file.tensors):
        raise ValueError(f"block_count is {count}")
    if not isinstance(pattern, list):
        pattern = [(place + 1) % period != 0 for place in range(count)]
    kinds = ["sliding_attention" if narrow else "full_attention" for narrow in pattern[:count]]
    return {"sliding_window": said("attention.sliding_window"), "query_pre_attn_scalar": said("attention.key_length"), "layer_types": kinds}


def _gemma3(said: _Said) -> dict[str, Any]:
    window = _window(said, 6)
    full = said.rope(said("attention.key_length"))
    local = {"rope_type": "default", "rope_theta": said("rope.freq_base_swa", 10000.0)}
    return window | {"rope_parameters": {"full_attention": full, "sliding_attention": local}}


def _falcon(said: _Said) -> dict[str, Any]:
    groups = said("attention.head_count_kv")
    grouped = said.has("blk.0.attn_norm_2.weight")
    return {
        "num_kv_heads": groups, "multi_query": groups == 1, "new_decoder_architecture": grouped, "max_position_embeddings": said("context_length"),
        "ffn_hidden_size": said("feed_forward_length"),
    }  # fmt: skip


_OWN: dict[str, Callable[[_Said], dict[str, Any]]] = {
    "llama": lambda said: {"attention_bias": said.has("blk.0.attn_q.bias"), "mlp_bias": said.has("blk.0.ffn_up.bias")},
    "qwen3moe": lambda said: {"num_experts": said("expert_count"), "intermediate_size": said("feed_forward_length", 0)},
    "gemma2": lambda said: _window(said, 2),
    "gemma3": _gemma3,
    "phi3": lambda said: {"sliding_window": None},
    "stablelm": lambda said: {
        "use_qkv_bias": said.has("blk.0.attn_q.bias"), "use_parallel_residual": not said.has("blk.0.ffn_norm.weight"),
    },
    "falcon": _falcon,
    "gpt2": lambda said: {"n_inner": said("feed_forward_length")},
    "mamba": lambda said: {"expand": said("ssm.inner_size") // said("embedding_length")},
}  # fmt: skip
