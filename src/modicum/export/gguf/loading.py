"""A GGUF file read back: by the format's own reader, and as a module that holds what it says."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import nn

from modicum.core.errors import ModelError, quoted
from modicum.export.gguf.architectures import Architecture, row_of
from modicum.export.gguf.file import FILE, File
from modicum.export.gguf.naming import Naming
from modicum.export.gguf.reader import GgufFile
from modicum.export.gguf.tensors import GgufTensors
from modicum.export.gguf.widths import narrowed
from modicum.models.open import model_class, read_config, skeleton
from modicum.models.weights import Weights


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
    naming = naming_of(file, config, row)
    if row.apart and file.values.get("general.architecture") == row.apart:
        narrowed(module, naming, file)
    tensors, weights = GgufTensors(file, module, naming, file.path.parent), Weights(module)
    for name in tensors.names():
        weights.put(name, tensors.read(name))
    return module.eval()


def naming_of(file: GgufFile, config: Any, row: Architecture) -> Naming:
    """Names of the weights of a file's model."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return Naming(row, text, text.num_hidden_layers, str(file.path))
