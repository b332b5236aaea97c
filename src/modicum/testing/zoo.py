"""Tiny random models of real architectures, and random checkpoints of any size, built in code without a network.

Each architecture is one row of a table: the Transformers class, the few settings that make it small, and the kind of batch its
``forward`` takes. All are two to four layers deep and 64 wide, with a vocabulary of 256, and build in well under a second.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Generator, Tensor, nn

from modicum.core.errors import SettingError, near

Batch = dict[str, Tensor]

VOCABULARY = 256
WINDOW = 8  # of sliding and chunked attention: shorter than every sequence, so that the mask matters
_SIZES = (2, 2, 2, 1)
_LENGTHS = (24, 24, 17, 32)


class Mlp(nn.Module):
    """Three linear layers with a GELU between: 64 numbers in, 10 out."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 10))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape (batch, 10) for ``x`` of shape (batch, 64)."""
        return self.layers(x)


class Cnn(nn.Module):
    """Three convolutions, one of them grouped, each with a batch norm, and a linear head: 3-channel pictures in, 10 numbers out."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, stride=2, padding=1, groups=4), nn.BatchNorm2d(64), nn.ReLU()),
            *(nn.Conv2d(64, 64, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()),
        )
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape (batch, 10) for ``x`` of shape (batch, 3, height, width)."""
        return self.head(self.features(x).mean(dim=(2, 3)))


def _ids(generator: Generator, size: int, length: int, vocabulary: int = VOCABULARY) -> Tensor:
    return torch.randint(3, vocabulary, (size, length), generator=generator)  # 0, 1 and 2 are padding, begin and end


def _text(generator: Generator, size: int, length: int, vocabulary: int = VOCABULARY) -> Batch:
    return {"input_ids": _ids(generator, size, length, vocabulary)}


def _padded_text(generator: Generator, size: int, length: int) -> Batch:
    ids = _ids(generator, size, length)
    ids[1:, -5:] = 0
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def _two_texts(generator: Generator, size: int, length: int) -> Batch:
    return _padded_text(generator, size, length) | {"decoder_input_ids": _ids(generator, size, length - 7)}


def _pixels(generator: Generator, size: int) -> Tensor:
    patches = torch.randn(size, 3, 4, 4, generator=generator)  # without them all pictures would have nearly the same means
    return torch.randn(size, 3, 32, 32, generator=generator) + 2 * nn.functional.interpolate(patches, size=32)


def _image(generator: Generator, size: int, length: int) -> Batch:
    return {"pixel_values": _pixels(generator, size)}


def _text_and_image(generator: Generator, size: int, length: int) -> Batch:
    return _padded_text(generator, size, length) | _image(generator, size, length)


def _spectrum_and_text(generator: Generator, size: int, length: int) -> Batch:
    frames = torch.randn(size, 32, 64, generator=generator)
    return {"input_features": frames, "decoder_input_ids": _ids(generator, size, length)}


def _wave(generator: Generator, size: int, length: int) -> Batch:
    return {"input_values": torch.randn(size, 40 * length, generator=generator)}


def _vector(generator: Generator, size: int, length: int) -> Batch:
    return {"x": torch.randn(size, 64, generator=generator)}


def _picture(generator: Generator, size: int, length: int) -> Batch:
    return {"x": _pixels(generator, size)}


# What most configs call these things; each takes the ones that it declares. The initial weights are larger than the usual 0.02,
# which at these widths would leave outputs that hardly depend on the input.
_SHARED: dict[str, Any] = {
    **{"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "use_cache": False, "num_labels": 10},
    **{"num_hidden_layers": 3, "num_layers": 3, "n_layer": 3, "encoder_layers": 3, "decoder_layers": 3},
    **{"hidden_size": 64, "n_embd": 64, "d_model": 64, "word_embed_proj_dim": 64, "projection_dim": 64},
    **{"intermediate_size": 128, "ffn_dim": 128, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "n_inner": 128, "d_ff": 128},
    **{"num_attention_heads": 4, "num_heads": 4, "n_head": 4, "encoder_attention_heads": 4, "decoder_attention_heads": 4},
    **{"num_key_value_heads": 2, "head_dim": 16, "d_kv": 16},
    **{"max_position_embeddings": 64, "n_positions": 64, "max_target_positions": 64, "image_size": 32, "patch_size": 8},
    **{"initializer_range": 0.08, "init_std": 0.08},
}


@dataclass(frozen=True)
class _Entry:
    """How one architecture is made: a class of this module or of Transformers, its kind of batch, and the settings not shared."""

    model: str | type[nn.Module]
    batch: Callable[[Generator, int, int], Batch]
    settings: dict[str, Any]

    def make(self) -> nn.Module:
        if not isinstance(self.model, str):
            return self.model()
        cls = getattr(transformers, self.model)
        return cls(_config(cls.config_class, self.settings))


def _config(cls: type[transformers.PreTrainedConfig], settings: dict[str, Any]) -> transformers.PreTrainedConfig:
    declared = {*inspect.signature(cls).parameters, "num_labels"}
    shared = {key: value for key, value in _SHARED.items() if key in declared}
    towers = {key: _config(tower, {}) for key, tower in cls.sub_configs.items()}
    return cls(**shared | towers | copy.deepcopy(settings))


def _entry(model: str | type[nn.Module], batch: Callable[[Generator, int, int], Batch], **settings: Any) -> _Entry:
    return _Entry(model, batch, settings)


def _decoder(model: str, **settings: Any) -> _Entry:
    return _Entry(f"{model}ForCausalLM", _text, settings)


_CORE: dict[str, _Entry] = {
    "llama": _decoder("Llama"),
    "mistral": _decoder("Mistral", sliding_window=WINDOW),
    "qwen2": _decoder("Qwen2", tie_word_embeddings=True),
    "qwen3": _decoder("Qwen3"),
    "qwen3_moe": _decoder(
        "Qwen3Moe", num_hidden_layers=4, mlp_only_layers=[0], num_experts=8, num_experts_per_tok=2, moe_intermediate_size=32
    ),
    "gemma2": _decoder("Gemma2", sliding_window=WINDOW, query_pre_attn_scalar=16),
    "phi3": _decoder("Phi3"),
    "gpt2": _entry("GPT2LMHeadModel", _text),
    "gpt_neox": _decoder("GPTNeoX"),
    "opt": _decoder("OPT"),
    "albert": _entry("AlbertForMaskedLM", _padded_text, embedding_size=32),
    "bert": _entry("BertForMaskedLM", _padded_text),
    "t5": _entry("T5ForConditionalGeneration", _two_texts),
    "vit": _entry("ViTForImageClassification", _image),
    "convnext": _entry(
        "ConvNextForImageClassification",
        _image,
        **{"num_stages": 2, "depths": [2, 2], "hidden_sizes": [32, 64], "patch_size": 4, "layer_scale_init_value": 0.5},
    ),
    "resnet": _entry("ResNetForImageClassification", _image, layer_type="basic", depths=[2, 2], embedding_size=32, hidden_sizes=[32, 64]),
    "clip": _entry("CLIPModel", _text_and_image),
    "whisper": _entry("WhisperForConditionalGeneration", _spectrum_and_text, num_mel_bins=32, max_source_positions=32),
    "mamba": _decoder("Mamba", time_step_rank=32),
    "mlp": _entry(Mlp, _vector),
    "cnn": _entry(Cnn, _picture),
}

# Each has a trait that no core entry has: what treats the core without naming an architecture should treat these too.
_EXTRA: dict[str, _Entry] = {
    # latent attention, a shared expert, experts in groups, a first layer without experts
    "deepseek_v3": _decoder(
        "DeepseekV3",
        **{"num_key_value_heads": 4, "q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16},
        **{"v_head_dim": 16, "first_k_dense_replace": 1, "moe_intermediate_size": 32, "n_routed_experts": 8},
        **{"num_experts_per_tok": 2, "n_group": 2, "topk_group": 1},
    ),
    # attention sinks, experts with biases and with gate and up rows interleaved
    "gpt_oss": _decoder("GptOss", num_local_experts=4, num_experts_per_tok=2, intermediate_size=64, sliding_window=WINDOW),
    # every second layer has experts, one a token; chunked attention, and a layer without positions
    "llama4": _decoder(
        "Llama4",
        **{"num_hidden_layers": 4, "intermediate_size": 64, "intermediate_size_mlp": 128, "num_local_experts": 4},
        **{"interleave_moe_layer_step": 2, "attention_chunk_size": WINDOW},
    ),
    # local and global layers with a rotary base each, norms on queries and keys that multiply by one more than the weight
    "gemma3": _decoder(
        "Gemma3", sliding_window=WINDOW, query_pre_attn_scalar=16, layer_types=["sliding_attention"] * 2 + ["full_attention"]
    ),
    # queries, a single key and a single value in one matrix; attention and FFN in parallel
    "falcon": _decoder("Falcon", ffn_hidden_size=128),
    # biases by distance instead of positions; queries, keys and values interleaved by head
    "bloom": _decoder("Bloom"),
    # state-space heads with one decay each, and one projection for all their inputs
    "mamba2": _decoder("Mamba2", state_size=32, num_heads=4, head_dim=32, n_groups=1, chunk_size=16),
    # state-space and attention layers, dense and sparse FFNs in one model
    "jamba": _decoder("Jamba", num_hidden_layers=4, attn_layer_period=2, attn_layer_offset=1, num_experts=4, mamba_dt_rank=32),
    # an embedding shared by encoder, decoder and head, norms after the blocks
    "bart": _entry("BartForConditionalGeneration", _two_texts),
    # pooling by attention with one learnt query
    "siglip": _entry("SiglipModel", _text_and_image),
    # windows of positions, patches merged between stages
    "swin": _entry("SwinForImageClassification", _image, depths=[2, 2], num_heads=[2, 4], patch_size=4, embed_dim=32, window_size=4),
    # one-dimensional convolutions, one of them with its weight parametrized by direction and length
    "wav2vec2": _entry(
        "Wav2Vec2ForCTC",
        _wave,
        **{"conv_dim": (32, 32), "conv_kernel": (10, 8), "conv_stride": (5, 4)},
        **{"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4},
    ),
}


def names() -> list[str]:
    """Names of the core architectures that `build` makes."""
    return list(_CORE)


def extra_names() -> list[str]:
    """Names of further architectures that `build` makes, each with a trait that no core one has."""
    return list(_EXTRA)


def build(name: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, list[Batch]]:
    """Tiny random model of the architecture ``name``, in eval mode, and four batches of keyword tensors for its ``forward``.

    Biases and norms are moved off the zeros and ones they start with, so that a step which forgets one changes the output.

    Shapes: three batches of two samples and one of a single sample; texts are 24, 24, 17 and 32 tokens long.

    Needs and cost: at most a second and a few MB. The global random state is left as it was; equal seeds give equal models and batches.

    Raises:
        SettingError: ``name`` is in neither `names` nor `extra_names`.
    """
    known = _CORE | _EXTRA
    if name not in known:
        raise SettingError(f"zoo: name must be one of its architectures, got {name!r}. {near(name, known)}")
    return _build(known[name], seed, dtype)


def tied_twin(seed: int = 0) -> tuple[nn.Module, list[Batch]]:
    """Qwen2 with tied embeddings and a vocabulary of 1024, and batches as from `build`.

    Its rows are 256 or 512 numbers long, so that formats which pack 256 numbers at a time hold all of it.
    """
    settings = {"tie_word_embeddings": True, "vocab_size": 1024, "hidden_size": 256, "intermediate_size": 512}
    return _build(_Entry("Qwen2ForCausalLM", partial(_text, vocabulary=1024), settings), seed, torch.float32)


def language_model(model: str, seed: int = 0, dtype: torch.dtype = torch.float32, **settings: Any) -> nn.Module:
    """A class of Transformers that reads tokens, as small as what `build` makes but for ``settings`` of its config."""
    return _build(_Entry(model, _text, settings), seed, dtype)[0]


def _build(entry: _Entry, seed: int, dtype: torch.dtype) -> tuple[nn.Module, list[Batch]]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed every GPU, which the fork does not restore
        model = entry.make().eval()
    generator = Generator().manual_seed(seed)
    _unsettle(model, generator)
    _cast(model, dtype)
    batches = [entry.batch(generator, size, length) for size, length in zip(_SIZES, _LENGTHS)]
    return model, [{key: x.to(dtype) if x.is_floating_point() else x for key, x in batch.items()} for batch in batches]


def _unsettle(model: nn.Module, generator: Generator) -> None:
    """Move biases, norms and running statistics off the zeros and ones they start with."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and (tensor.ndim == 1 or name.endswith("bias")):
            tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.1)


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast what a checkpoint would hold; ``model.to(dtype)`` would also round the rotary frequencies, which loading never does."""
    for tensor in model.state_dict(keep_vars=True).values():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)


def random_checkpoint(
    directory: str | Path,
    config: transformers.PreTrainedConfig,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    shard_bytes: int = 1 << 30,
) -> Path:
    """Write a random checkpoint of the causal language model that ``config`` describes, without ever holding the model.

    Norm weights are 1, biases 0 and all else normal with standard deviation 0.02. Every tensor is seeded by its name and ``seed``
    alone, so its values do not depend on ``shard_bytes``. Tensors carry the names of the module's own ``state_dict``, with the
    experts of a layer stacked as the module stacks them; tied weights are written once.

    Needs and cost: memory for one shard, that is ``shard_bytes`` or the largest tensor; time and disk in proportion to the model.

    Returns:
        The directory, with ``config.json``, ``model.safetensors.index.json`` and the shards that it names.

    Raises:
        SettingError: ``shard_bytes`` is not positive, or the directory already holds safetensors files.
    """
    directory = Path(directory)
    if shard_bytes <= 0:
        raise SettingError(f"random_checkpoint: shard_bytes must be positive, got {shard_bytes}. Give the bytes of one shard.")
    if any(directory.glob("*.safetensors*")):
        raise SettingError(f"random_checkpoint: directory must hold no safetensors files, got {directory}. Give an empty one.")
    directory.mkdir(parents=True, exist_ok=True)
    skeleton = _skeleton(config)
    tensors = _distinct(skeleton)
    shards = list(_shards(tensors, dtype, shard_bytes))
    files = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for file, shard in zip(files, shards):
        save_file({name: _random(name, tensors[name].shape, dtype, seed) for name in shard}, directory / file, {"format": "pt"})
    index = {
        "metadata": {"total_size": sum(tensor.numel() for tensor in tensors.values()) * dtype.itemsize},
        "weight_map": {name: file for file, shard in zip(files, shards) for name in shard},
    }
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    skeleton.config.dtype = dtype
    skeleton.config.architectures = [type(skeleton).__name__]
    skeleton.config.save_pretrained(directory)
    return directory


def _skeleton(config: transformers.PreTrainedConfig) -> transformers.PreTrainedModel:
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(copy.deepcopy(config))


def _distinct(model: nn.Module) -> dict[str, Tensor]:
    """Tensors that a checkpoint holds: the state dict's, with a tied weight only under its first name."""
    first = {id(tensor): name for name, tensor in reversed(model.state_dict(keep_vars=True).items())}
    return {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if first[id(tensor)] == name}


def _shards(tensors: dict[str, Tensor], dtype: torch.dtype, shard_bytes: int) -> Iterator[list[str]]:
    shard: list[str] = []
    room = shard_bytes
    for name, tensor in tensors.items():
        size = tensor.numel() * dtype.itemsize
        if shard and size > room:
            yield shard
            shard, room = [], shard_bytes
        shard.append(name)
        room -= size
    yield shard


def _random(name: str, shape: torch.Size, dtype: torch.dtype, seed: int) -> Tensor:
    if name.endswith("bias"):
        return torch.zeros(shape, dtype=dtype)
    if len(shape) < 2:
        return torch.ones(shape, dtype=dtype)
    key = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return torch.empty(shape, dtype=dtype).normal_(0, 0.02, generator=Generator().manual_seed(int.from_bytes(key, "big") >> 1))
