"""A GGUF file read back: by the format's own reader, and as a module that holds what it says."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from modicum.core.errors import ModelError, quoted
from modicum.data.splits import Batch
from modicum.export.gguf.file import FILE, File
from modicum.export.gguf.naming import MATRICES, Naming, Part
from modicum.models.model import Model
from modicum.models.open import read_config, skeleton
from modicum.models.structure import find_units
from modicum.models.weights import Weights


def verified(directory: Path, file: File, naming: Naming, model: Model, batch: Batch | None) -> tuple[nn.Module, dict[str, Any]]:
    """The module that a file holds, and what was compared. Raises ``ModelError`` where anything differs."""
    found = _compared(directory / FILE, file)
    file.compare(directory)
    module = filled(directory / FILE, type(model.module), read_config(directory), naming)
    return module, {"loader": "modicum, by the format's own reader", "tensors compared": found}


def _read(path: Path) -> dict[str, Any]:
    """Tensors of a file by name, by the format's own reader. Raises ``ModelError`` where that fails."""
    import gguf

    try:
        return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    except Exception as error:  # whatever a reader raises
        raise ModelError(f"{path}: the format's own reader fails at it ({quoted(error)}). Write it anew.") from error


def _compared(path: Path, file: File) -> int:
    """Read the head with the format's own reader, and compare names, shapes and types with what was to be written."""
    read = _read(path)
    if set(read) != set(file.tensors):
        raise ModelError(f"{path}: must hold the tensors that were written, {sorted(set(read) ^ set(file.tensors))[0]} is not in both.")
    for name, tensor in file.tensors.items():
        place, there = tensor.place, read[name]
        if (tuple(reversed(there.shape.tolist())), int(there.tensor_type), there.n_bytes) != (place.shape, place.type, place.nbytes):
            raise ModelError(f"{path}: {name} must be read with its shape and type, is read otherwise. Report this.")
    return len(read)


def filled(path: Path, cls: type[nn.Module], config: Any, naming: Naming) -> nn.Module:
    """A module of a class with every weight from a file. Raises ``ModelError`` where one is missing or of another shape."""
    import gguf

    read = _read(path)
    module = skeleton(cls, copy.deepcopy(config))
    weights = Weights(module)
    units = find_units(module, weights)
    for name in weights.names:
        held, unit = weights.held(name), units.get(name)
        stacked = naming.stacked(name)
        shape = unit.shape if unit is not None and unit.kind in MATRICES else tuple(held.shape[1:] if stacked else held.shape)
        parts = naming.parts(name, shape)
        if missing := next((part.name for part in parts if part.name not in read), None):
            raise ModelError(f"{path}: must hold {quoted(missing)}, does not. Fetch it again.")
        values = [naming.read(part, _value(read[part.name], gguf)) for part in parts]
        value = _joined(values, parts, (len(held), *shape) if stacked else shape, path)
        value = unit.stored(value) if unit is not None and unit.kind in MATRICES else value.reshape(held.shape)
        weights.put(name, value.to(held.dtype))
    return module


def _value(tensor: Any, gguf: Any) -> torch.Tensor:
    """What a tensor of the file stands for, in float32."""
    shape = tuple(reversed(tensor.shape.tolist()))
    if tensor.tensor_type == gguf.GGMLQuantizationType.BF16:
        raw = torch.from_numpy(np.ascontiguousarray(tensor.data).view(np.uint8).reshape(-1).copy())
        return raw.view(torch.bfloat16).reshape(shape).float()
    return torch.from_numpy(np.array(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)).reshape(shape)


def _joined(values: list[torch.Tensor], parts: list[Part], shape: tuple[int, ...], path: Path) -> torch.Tensor:
    """The weight that parts hold rows of; of a stack of experts, of each."""
    stacked = values[0].ndim == 3
    if sum(value.numel() for value in values) != torch.Size(shape).numel():
        raise ModelError(
            f"{path}: {parts[0].name} must have the shape of the model's weight, has {tuple(values[0].shape)}. Check the file."
        )
    if len(parts) == 1 and parts[0].rows is None:
        return values[0].reshape(shape)
    found = torch.empty(shape)
    for part, value in zip(parts, values):
        rows = slice(None) if part.rows is None else part.rows
        if stacked:
            found[:, rows] = value
        else:
            found[rows] = value
    return found
