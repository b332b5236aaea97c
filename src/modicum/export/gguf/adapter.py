"""A delta as an adapter that llama.cpp lays beside a model's file."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from modicum.core.errors import ModelError, SettingError, quoted
from modicum.core.unit import Unit
from modicum.delta import Delta
from modicum.delta.peft import factors
from modicum.export.gguf.architectures import row_of
from modicum.export.gguf.fields import ALIGNMENT, Place, Value, head
from modicum.export.gguf.file import Tensor
from modicum.export.gguf.naming import Naming, Part
from modicum.models.open import open_model
from modicum.models.trainable import trainable

FILE = "adapter.gguf"
_FLOAT32 = 0


def to_gguf(delta: Delta, directory: str | Path, base: Any) -> Path:
    """Write a delta of ``base`` as ``adapter.gguf``: for each layer ``lora_a`` (rank, inputs) and ``lora_b`` (outputs, rank) in float32.

    Each rank is its own, and the scale is 1 (an alpha of 0 says so). Outputs stand in the order in which a file for llama.cpp has them, and a weight
    that is several tensors there has several pairs.

    Raises ``SettingError`` where the package gguf is missing, ``ModelError`` for an architecture that is not known there and for what such an
    adapter cannot hold: all but products of thin matrices that are added to layers of their own.
    """
    if importlib.util.find_spec("gguf") is None:
        raise SettingError("format gguf: the package gguf must be installed, is not. Run: pip install 'modicum[gguf]'.")
    model = open_model(base)
    row, units = row_of(type(model.module)), trainable(model.module)
    if row is None:
        raise ModelError(
            f"{model.name}: must be of an architecture that llama.cpp knows, {type(model.module).__name__} is none. Pass --format peft."
        )
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    naming, tensors = Naming(row, config, len(model.blocks), model.name), dict[str, torch.Tensor]()
    for name, form in delta.forms.items():
        unit = units.get(name)
        if unit is None:
            raise ModelError(f"{model.name}: has no weight {quoted(name)}, which the delta changes. Name its own base.")
        left, right = factors(name, form, delta.shared)
        for part in _parts(naming, unit):
            tensors |= {f"{part.name}.lora_a": right, f"{part.name}.lora_b": part.of(left)}
    if not tensors:
        raise ModelError("delta: must change a weight, changes none. Train it first.")
    values: dict[str, Value] = {
        "general.type": "adapter", "general.architecture": row.name, "adapter.type": "lora", "adapter.lora.alpha": 0.0,
        "general.name": Path(model.name).name,
    }  # fmt: skip
    return _write(Path(directory) / FILE, values, tensors)


def _parts(naming: Naming, unit: Unit) -> list[Part]:
    """The tensors that a layer's weight is in a file. Raises ``ModelError`` for what an adapter has no place for."""
    if unit.kind not in ("linear", "conv1d") or unit.aliases:
        why = "has several names" if unit.aliases else f"is of kind {unit.kind}"
        raise ModelError(f"{unit.name}: {why}, and an adapter for llama.cpp must hold layers of their own. Apply the delta instead.")
    return naming.parts(unit.parameter, unit.shape)


def _write(path: Path, values: Mapping[str, Value], tensors: Mapping[str, torch.Tensor]) -> Path:
    places = [
        Tensor(Place(name, tuple(value.shape), _FLOAT32, 4 * value.numel()), partial(lambda one: [one.float()], value))
        for name, value in tensors.items()
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(head(values, [each.place for each in places]))
        for each in places:
            for piece in each.pieces():
                file.write(piece)
            file.write(bytes(-each.place.nbytes % ALIGNMENT))
    return path
