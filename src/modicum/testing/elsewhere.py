"""Tiny models of timm and diffusers, where these are installed: pictures' backbones, and the networks inside diffusion."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor, nn

from modicum.testing import zoo

Batch = dict[str, Tensor] | tuple[Tensor, ...]
# Beside timm's own test models, small real ones of other kinds.
_TIMM = (
    "mobilenetv3_small_050", "lcnet_050", "ghostnet_050", "edgenext_xx_small", "mobilevit_xxs", "regnetx_002", "mnasnet_small", "efficientvit_m0",
    "starnet_s1", "repghostnet_050", "xcit_nano_12_p16_224", "pvt_v2_b0", "inception_next_atto", "convnext_atto", "mambaout_femto",
)  # fmt: skip
_UNET: dict[str, Any] = {"sample_size": 16, "block_out_channels": (32, 64), "layers_per_block": 1}
_HEADS: dict[str, Any] = {"num_attention_heads": 4, "attention_head_dim": 16, "num_layers": 2}
# Classes of diffusers with settings that make them small, and shapes of what they take by name; the last axes of texts are 32 wide.
_TIME: tuple[int, ...] = (2,)
_PICTURE: tuple[int, ...] = (2, 4, 16, 16)
_TEXTS: tuple[int, ...] = (2, 6, 32)
_DIFFUSERS: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]]]] = {
    "UNet2DModel": (
        _UNET | {"in_channels": 4, "out_channels": 4, "norm_num_groups": 8, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
                 "up_block_types": ("AttnUpBlock2D", "UpBlock2D")},
        {"sample": _PICTURE, "timestep": _TIME},
    ),
    "UNet2DConditionModel": (
        _UNET | {"cross_attention_dim": 32, "norm_num_groups": 8, "attention_head_dim": 8,
                 "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")},
        {"sample": _PICTURE, "timestep": _TIME, "encoder_hidden_states": _TEXTS},
    ),
    "AutoencoderKL": (
        {"block_out_channels": (32, 64), "norm_num_groups": 8, "down_block_types": ("DownEncoderBlock2D",) * 2,
         "up_block_types": ("UpDecoderBlock2D",) * 2},
        {"sample": (2, 3, 32, 32)},
    ),
    "AutoencoderTiny": (
        {"encoder_block_out_channels": (16, 16), "decoder_block_out_channels": (16, 16), "num_encoder_blocks": (1, 1),
         "num_decoder_blocks": (1, 1)},
        {"sample": (2, 3, 32, 32)},
    ),
    "VQModel": ({"block_out_channels": (32,), "norm_num_groups": 8, "latent_channels": 3}, {"sample": (2, 3, 16, 16)}),
    "DiTTransformer2DModel": (
        _HEADS | {"in_channels": 4, "sample_size": 16, "num_embeds_ada_norm": 10, "norm_type": "ada_norm_zero"},
        {"hidden_states": _PICTURE, "timestep": _TIME, "class_labels": _TIME},
    ),
    "PixArtTransformer2DModel": (
        _HEADS | {"in_channels": 4, "out_channels": 4, "sample_size": 16, "cross_attention_dim": 64, "caption_channels": 32,
                  "use_additional_conditions": False},
        {"hidden_states": _PICTURE, "timestep": _TIME, "encoder_hidden_states": _TEXTS},
    ),
    "SD3Transformer2DModel": (
        _HEADS | {"sample_size": 16, "in_channels": 4, "out_channels": 4, "joint_attention_dim": 32, "caption_projection_dim": 64,
                  "pooled_projection_dim": 32, "pos_embed_max_size": 16},
        {"hidden_states": _PICTURE, "timestep": _TIME, "encoder_hidden_states": _TEXTS, "pooled_projections": (2, 32)},
    ),
    "FluxTransformer2DModel": (
        _HEADS | {"in_channels": 4, "num_single_layers": 2, "joint_attention_dim": 32, "pooled_projection_dim": 32, "axes_dims_rope": (4, 4, 8)},
        {"hidden_states": (2, 16, 4), "timestep": _TIME, "encoder_hidden_states": _TEXTS, "pooled_projections": (2, 32),
         "img_ids": (16, 3), "txt_ids": (6, 3)},
    ),
    "SanaTransformer2DModel": (
        _HEADS | {"in_channels": 4, "out_channels": 4, "num_cross_attention_heads": 4, "cross_attention_head_dim": 16, "cross_attention_dim": 64,
                  "caption_channels": 32, "sample_size": 16},
        {"hidden_states": _PICTURE, "timestep": _TIME, "encoder_hidden_states": _TEXTS},
    ),
    "ControlNetModel": (
        {"block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 32, "norm_num_groups": 8, "attention_head_dim": 8,
         "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "conditioning_embedding_out_channels": (16, 32)},
        {"sample": _PICTURE, "timestep": _TIME, "encoder_hidden_states": _TEXTS, "controlnet_cond": (2, 3, 32, 32)},
    ),
}  # fmt: skip
_CHOSEN = ("timestep", "class_labels")


def elsewhere_names() -> list[str]:
    """``package.name`` of each model that can be made."""
    found = [f"diffusers.{name}" for name in _DIFFUSERS] if importlib.util.find_spec("diffusers") else []
    if importlib.util.find_spec("timm"):
        import timm

        found += [f"timm.{name}" for name in (*timm.list_models("test_*"), *_TIMM)]
    return found


def made_elsewhere(name: str, seed: int = 0) -> tuple[nn.Module, Callable[[Generator], Batch]]:
    """A model by its ``package.name``, random, with what makes batches for it."""
    package, _, inner = name.partition(".")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model, make = (_timm if package == "timm" else _diffusers)(inner)
    zoo._unsettle(model, Generator().manual_seed(seed))
    return model.eval(), make


def _timm(name: str) -> tuple[nn.Module, Callable[[Generator], Batch]]:
    import timm

    model: Any = timm.create_model(name, num_classes=10)
    size = model.default_cfg["input_size"]
    return model, lambda generator: (torch.randn(2, *size, generator=generator),)


def _diffusers(name: str) -> tuple[nn.Module, Callable[[Generator], Batch]]:
    import diffusers

    settings, shapes = _DIFFUSERS[name]
    return getattr(diffusers, name)(**settings), lambda generator: {key: _value(key, shape, generator) for key, shape in shapes.items()}


def _value(name: str, shape: tuple[int, ...], generator: Generator) -> Tensor:
    return torch.randint(1, 9, shape, generator=generator) if name in _CHOSEN else torch.randn(shape, generator=generator)
