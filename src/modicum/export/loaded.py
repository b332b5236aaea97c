"""A directory as users of Transformers load it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modicum.core.errors import ModelError, quoted
from modicum.core.files import read_json
from modicum.core.tensorfile import Shards
from modicum.models.cached import attentions, round_cache
from modicum.models.quiet import hushed


def loaded(cls: Any, directory: Path) -> nn.Module:
    """What plain ``from_pretrained`` of a class gives, but for keys and values that it may leave as they are (``with_cache``).

    Raises ``ModelError`` where it fails, or does not take the files as they are.
    """
    try:
        with hushed():
            module, report = cls.from_pretrained(directory, dtype="auto", output_loading_info=True)
    except Exception as error:  # whatever a loader raises
        raise ModelError(f"{directory}: Transformers' own loader fails at these files ({quoted(error)}). Pass --target modicum.") from error
    cache = scales_of_cache(directory)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if found := sorted(each for each in map(str, report.get(kind) or ()) if not (kind == "unexpected_keys" and each in cache)):
            raise ModelError(f"{directory}: Transformers must load it whole, reports {kind} such as {found[:2]}.")
    return _as_swept(with_cache(module, cache))


def with_cache(module: nn.Module, scales: Mapping[str, torch.Tensor]) -> nn.Module:
    """The module, which rounds keys and values by ``scales`` (by name, of its files) where its loader has not made it so."""
    names = sorted({name.rpartition(".")[0] for name in scales})
    known = attentions(module) if names else {}
    for name in names:
        pair = [scales.get(f"{name}.{part}_scale", torch.empty(0)).flatten() for part in "kv"]
        if name not in known or not all(len(one) == 1 and one.is_floating_point() and 0 < float(one) < torch.inf for one in pair):
            raise ModelError(
                f"{quoted(name)}: must be an attention with one positive scale for keys and one for values, is not. Write the files anew."
            )
        if not rounds_cache(module.get_submodule(name)):
            round_cache(module, {name: (pair[0], pair[1])})
    return module


def rounds_cache(module: nn.Module) -> bool:
    """Whether its loader lets a module round what it keeps: a compressed-tensors that knows what attentions call their cache."""
    return any(hasattr(part, "kv_cache") for part in module.modules())


def scales_of_cache(directory: Path) -> dict[str, torch.Tensor]:
    """Scales of keys and values by name, where the files say that these are rounded."""
    said = read_json(directory / "config.json").get("quantization_config") or {}
    scheme = said.get("kv_cache_scheme") if isinstance(said, dict) else None
    if not isinstance(scheme, dict) or [scheme.get(key) for key in ("num_bits", "type", "strategy")] != [8, "float", "tensor"]:
        return {}
    with Shards(directory) as shards:
        return {name: shards.read(name) for name in shards.names() if name.endswith((".k_scale", ".v_scale"))}


def dequantized(cls: Any, directory: Path) -> nn.Module:
    """What it gives where it decodes weights while it loads them, whatever that is."""
    from transformers import CompressedTensorsConfig

    with hushed(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the directory has a config of its own, which is what is wanted
        return _as_swept(cls.from_pretrained(directory, dtype="auto", quantization_config=CompressedTensorsConfig(dequantize=True)))


def _as_swept(module: nn.Module) -> nn.Module:
    """In the arithmetic of the sweep: what remains to differ is the weights."""
    if callable(choose := getattr(module, "set_experts_implementation", None)):
        choose("eager")
    return module.eval()
