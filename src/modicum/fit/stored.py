"""What a result's files hold of each weight, and under which names: forms that training may go on from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from modicum.core.errors import ModelError, ModicumError, quoted
from modicum.core.tensorfile import Shards
from modicum.export import shared
from modicum.export.container import FILE, read_body
from modicum.export.depth import renamed, renumbering
from modicum.fit.stored_gguf import GGUF, vectors_of
from modicum.forms import Dense, Form, Integer, Masked
from modicum.forms.packing import unpack
from modicum.models.laid import laid
from modicum.models.open import open_model, read_config
from modicum.models.trainable import trainable
from modicum.models.weights import CheckpointWeights

# Zeros that a weight must have at the least, as a share, to be one that was pruned.
_PRUNED = 0.05
_PACKED, _SCALE, _SHAPE = ".weight_packed", ".weight_scale", ".weight_shape"


@dataclass(frozen=True)
class Stored:
    """``forms`` by unit of the dense module, the names on disk of ``vectors`` by parameter, and what a form is ``written`` as there."""

    forms: Mapping[str, Form]
    vectors: Mapping[str, str]
    written: Callable[[str, Form], Mapping[str, torch.Tensor]]


def stored(directory: Path, dense: Path) -> Stored:
    """What the result in ``directory`` holds, by the names of its ``dense`` checkpoint. Raises ``ModelError`` where inputs are rounded."""
    if (directory / FILE).is_file():
        return _container(directory)
    if (directory / GGUF).is_file():
        return Stored({}, vectors_of(directory, dense), lambda name, form: {})
    config = getattr(read_config(directory), "quantization_config", None)
    if config is None:
        return _pruned(dense)
    try:
        return _compressed(directory, config)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
        if isinstance(error, ModicumError):
            raise
        raise ModelError(f"{directory}: its packed weights must fit together ({quoted(error)}). Write the files anew.") from None


def _container(directory: Path) -> Stored:
    body = read_body(directory)
    rename = renumbering(frozenset(body["dropped"]))
    with Shards(directory) as shards:
        parts: dict[str, list[str]] = {}
        for key in shards.names():
            parts.setdefault(key.rpartition(":")[0], []).append(key)
        read = lambda name: {key.rpartition(":")[2]: shards.read(key) for key in parts.get(name, [])}
        held = shared.read(shards)
        forms = {name: shared.restored(unit["form"], read(name), held) for name, unit in body["units"].items()}
        vectors = {renamed(key, rename): key for key in parts.get("", []) if len(shards.entry(key).shape) == 1}
    _require_plain(directory, any(form.rounding is not None for form in forms.values()))
    names = {renamed(name, rename): name for name in forms}
    written = lambda name, form: {f"{names[name]}:{part}": tensor for part, tensor in form.tensors().items()}
    return Stored({new: forms[old] for new, old in names.items() if not isinstance(forms[old], Dense)}, vectors, written)


def _compressed(directory: Path, config: dict) -> Stored:
    """Integers of compressed-tensors; what is stored otherwise stays."""
    groups = (config.get("config_groups") or {}).values()
    _require_plain(directory, any(isinstance(group, dict) and group.get("input_activations") for group in groups))
    forms: dict[str, Form] = {}
    with Shards(directory) as shards:
        keys = set(shards.names())
        for key in (key for key in keys if key.endswith(_PACKED)):
            module = key.removesuffix(_PACKED)
            if {module + _SCALE, module + _SHAPE} <= keys and f"{module}.weight_zero_point" not in keys:
                rows, columns = shards.read(module + _SHAPE).tolist()
                words, scale = shards.read(key), shards.read(module + _SCALE)
                bits = words.shape[1] * 32 // columns
                if not (2 <= bits <= 8 and words.shape[0] == rows == scale.shape[0] and 0 < scale.shape[1] <= columns):
                    raise ValueError(f"{module} has {tuple(words.shape)} words and {tuple(scale.shape)} scales for {rows} x {columns}")
                codes = unpack(words.contiguous().view(torch.uint8).view(rows, -1), bits, columns)
                group = 0 if scale.shape[1] == 1 else columns // scale.shape[1]
                forms[f"{module}.weight"] = Integer(codes, scale, None, bits, group)
        vectors = {key: key for key in keys if len(shards.entry(key).shape) == 1 and not key.endswith(_SHAPE) and ".weight." not in key}
    written = lambda name, form: {f"{name.removesuffix('.weight')}{_SCALE}": form.tensors()["scale"]}
    return Stored(forms, vectors, written)


def _pruned(directory: Path) -> Stored:
    """Weights of a dense checkpoint with zeros, which stay."""
    model = open_model(directory)
    weights, units = model.weights, trainable(model.module)
    assert isinstance(weights, CheckpointWeights)
    forms: dict[str, Form] = {}
    for name, unit in units.items():
        if unit.kind in ("linear", "conv1d", "convolution") and unit.expert is None:
            matrix = unit.matrix(weights.read(unit.parameter))
            if float((matrix == 0).float().mean()) >= _PRUNED:
                forms[name] = Masked.of(matrix, matrix != 0)
    vectors = {}
    for name in weights.names:
        if weights.held(name).ndim == 1 and len(on_disk := laid(weights, name, weights.read(name))) == 1:
            vectors[name] = next(iter(on_disk))
    written = lambda name, form: laid(weights, units[name].parameter, units[name].stored(form.dense()))
    return Stored(forms, vectors, written)


def _require_plain(directory: Path, rounds: bool) -> None:
    if rounds:
        raise ModelError(f"{directory}: must take its inputs as they are to be healed, rounds them. Pass --heal to fit.")
