"""What plain ``from_pretrained`` would make of a checkpoint: the dtype of each weight, and which weights are really one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from modicum.core.errors import ModelError
from modicum.core.files import read_json
from modicum.core.tensorfile import Shards

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def settle_dtype(config: Any, shards: Shards) -> None:
    """Put the dtype that the model is loaded in into its config: its own word, else that of the first floating tensor of the first file.

    Raises ``ModelError`` where it is none that a model can be built in.
    """
    said = _dtype(getattr(config, "dtype", None)) or _dtype(_index_word(shards)) or _first_dtype(shards)
    if said not in FLOATS:
        raise ModelError(
            f"{shards.directory}: its config's dtype must be float16, bfloat16, float32 or float64, is {said}. Check the config."
        )
    for part in (config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", {}))):
        if part is not None:
            part.dtype = said


def _dtype(said: Any) -> Any:
    return getattr(torch, said.removeprefix("torch."), said) if isinstance(said, str) else said


def _index_word(shards: Shards) -> Any:
    try:
        return read_json(shards.directory / "model.safetensors.index.json")["metadata"]["dtype"]
    except (ValueError, KeyError, TypeError):
        return None


def _first_dtype(shards: Shards) -> torch.dtype:
    """The rule of Transformers: all are taken for what the first by name is."""
    names = sorted(name for name in shards.names() if shards.file_of(name) == shards.files[0])
    return next((dtype for dtype in (shards.entry(name).dtype for name in names) if dtype in FLOATS), torch.float32)


def kept_wide(module: nn.Module, dtype: torch.dtype) -> Callable[[str], torch.dtype | None]:
    """The dtype of the weights that the class keeps otherwise than in the model's (``float32`` beside half precision), by name."""
    plan: dict[str, torch.dtype] = module._get_dtype_plan(dtype) if hasattr(module, "_get_dtype_plan") else {}  # type: ignore[operator]
    patterns = [(re.compile(pattern.replace("*", ".*")), wide) for pattern, wide in plan.items()]
    return lambda name: next((wide for pattern, wide in patterns if pattern.search(name)), None)


def tied_pairs(module: nn.Module) -> dict[str, str]:
    """Names that Transformers ties, each to the name it is tied to."""
    found = getattr(module, "all_tied_weights_keys", None)
    return dict(found) if isinstance(found, dict) else {}


def parted(pairs: Mapping[str, str], names: Iterable[str], stored: Callable[[str], bool], same: Callable[[str, str], bool]) -> list[str]:
    """Names of one weight that the file holds with values of their own: Transformers keeps those, whatever the config says."""
    mine = list(names)
    targets = [name for name in pairs if name in mine and stored(name)]
    source = next((pairs[name] for name in targets if stored(pairs[name])), targets[0] if targets else "")
    return [name for name in targets if name != source and not same(name, source)]


def part(module: nn.Module, name: str) -> None:
    """Give a tied weight a parameter of its own."""
    prefix, _, attribute = name.rpartition(".")
    owner = module.get_submodule(prefix)
    held = owner._parameters[attribute]
    assert held is not None
    owner._parameters[attribute] = nn.Parameter(torch.empty_like(held), requires_grad=False)


def untie(module: nn.Module, names: Iterable[str]) -> None:
    """Part these weights, and have the config say so where nothing else is tied by its word."""
    for name in names:
        part(module, name)
        module.all_tied_weights_keys.pop(name, None)  # type: ignore[operator,union-attr]
    config: Any = module.config
    if not tied_pairs(module):
        for each in {id(config): config, id(text := config.get_text_config()): text}.values():
            if hasattr(each, "tie_word_embeddings"):
                each.tie_word_embeddings = False
