"""A GGUF file read back: by the format's own reader, and as a module that holds what it says."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modicum.core.errors import ModelError, quoted
from modicum.core.finite import finite
from modicum.core.unit import Unit
from modicum.export.gguf.architectures import Architecture, row_of
from modicum.export.gguf.file import FILE, File
from modicum.export.gguf.naming import MATRICES, Naming, Part
from modicum.export.gguf.reader import GgufFile
from modicum.models.open import model_class, read_config, skeleton
from modicum.models.structure import find_units
from modicum.models.weights import Weights

# Tensors that say how positions turn, which a config says too.
_TURNS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


def compared(directory: Path, file: File) -> int:
    """Read the file as the format's own reader does, and compare names, shapes, types and bytes with what was to be written; how many tensors.

    Raises ``ModelError`` where anything differs.
    """
    path = directory / FILE
    read = _read(path)
    if set(read) != set(file.tensors):
        raise ModelError(f"{path}: must hold the tensors that were written, {sorted(set(read) ^ set(file.tensors))[0]} is not in both.")
    for name, tensor in file.tensors.items():
        place, there = tensor.place, read[name]
        if (tuple(reversed(there.shape.tolist())), int(there.tensor_type), there.n_bytes) != (place.shape, place.type, place.nbytes):
            raise ModelError(f"{path}: {name} must be read with its shape and type, is read otherwise. Report this.")
    return file.compare(directory)


def _read(path: Path) -> dict[str, Any]:
    """Tensors of a file by name, by the format's own reader. Raises ``ModelError`` where that fails."""
    import gguf

    try:
        return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    except Exception as error:  # whatever a reader raises
        raise ModelError(f"{path}: the format's own reader fails at it ({quoted(error)}). Write it anew.") from error


def load_gguf(directory: Path) -> nn.Module:
    """The model in a directory with a GGUF file and a config beside it. Raises ``ModelError``."""
    config = read_config(directory)
    cls = model_class(config, str(directory))
    row = row_of(cls)
    if row is None:
        raise ModelError(f"{directory}: its file must be of an architecture that is known, {cls.__name__} is none.")
    return filled(GgufFile(directory / FILE), cls, config, row)


def filled(file: GgufFile, cls: type[nn.Module], config: Any, row: Architecture) -> nn.Module:
    """A module of a class with every weight from a file, and no tensor of the file left over. Raises ``ModelError``."""
    module = skeleton(cls, copy.deepcopy(config), stored=len(file.tensors))
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    naming = Naming(row, text, text.num_hidden_layers, str(file.path))
    weights = Weights(module)
    units, left = find_units(module, weights), set(file.tensors) - set(_TURNS)
    for name in weights.names:
        parts = naming.parts(name, _shape(name, weights, units, naming))
        left -= {part.name for part in parts}
        weights.put(name, _weight(name, parts, weights, units, naming, file))
    if left:
        raise ModelError(f"{file.path}: every tensor must belong to the model, {quoted(sorted(left)[0])} does not. Check the file.")
    return module.eval()


def _matrix(name: str, units: Mapping[str, Unit]) -> Unit | None:
    unit = units.get(name)
    return unit if unit is not None and unit.kind in MATRICES else None


def _shape(name: str, weights: Weights, units: Mapping[str, Unit], naming: Naming) -> tuple[int, ...]:
    unit, held = _matrix(name, units), weights.held(name)
    return unit.shape if unit is not None else tuple(held.shape[1:] if naming.stacked(name) else held.shape)


def _weight(name: str, parts: list[Part], weights: Weights, units: Mapping[str, Unit], naming: Naming, file: GgufFile) -> torch.Tensor:
    """A weight as its module stores it."""
    held, unit, shape = weights.held(name), _matrix(name, units), _shape(name, weights, units, naming)
    whole = (len(held), *shape) if naming.stacked(name) else shape
    if missing := next((part.name for part in parts if part.name not in file.tensors), None):
        raise ModelError(f"{file.path}: must hold {quoted(missing)}, does not. Fetch it again.")
    shapes = [file.tensors[part.name].shape for part in parts]
    if sum(torch.Size(one).numel() for one in shapes) != torch.Size(whole).numel() or len({one[-1] for one in shapes}) > 1:
        raise ModelError(f"{file.path}: {parts[0].name} must have the shape of {name}, {whole}, has {shapes[0]}. Check the file.")
    values = [naming.read(part, file.read(part.name)) for part in parts]
    if not all(map(finite, values)):
        raise ModelError(f"{file.path}: weights must be finite, {quoted(parts[0].name)} is not. Fetch it again.")
    value = _joined(values, parts, whole)
    return (unit.stored(value) if unit is not None else value.reshape(held.shape)).to(held.dtype)


def _joined(values: list[torch.Tensor], parts: list[Part], shape: tuple[int, ...]) -> torch.Tensor:
    """The weight that parts hold rows of; of a stack of experts, of each."""
    if len(parts) == 1 and parts[0].rows is None:
        return values[0].reshape(shape)
    found = torch.empty(shape)
    for part, value in zip(parts, values):
        rows = slice(None) if part.rows is None else part.rows
        if len(shape) == 3:
            found[:, rows] = value
        else:
            found[rows] = value
    return found
