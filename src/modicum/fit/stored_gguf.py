"""What a result for llama.cpp holds that may move alone: vectors in float32, each in its place of the file. Its blocks of codes stay."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from modicum.core.errors import ModelError
from modicum.core.tensorformat import raw_bytes
from modicum.export.gguf.architectures import row_of
from modicum.export.gguf.loading import naming_of
from modicum.export.gguf.naming import Naming, Part
from modicum.export.gguf.reader import GgufFile
from modicum.models.open import model_class, open_model, read_config

GGUF = "model.gguf"
_FLOAT32 = 0


def vectors_of(directory: Path, dense: Path) -> dict[str, str]:
    """Names in the file of vectors of the ``dense`` checkpoint that are one tensor of float32 there. Raises ``ModelError`` for other names."""
    file, naming = _opened(directory)
    weights, found = open_model(dense).weights, dict[str, str]()
    for name in weights.names:
        held = weights.held(name)
        if held.ndim == 1 and (part := _part(naming, name, len(held))) is not None:
            tensor = file.tensors.get(part.name)
            if tensor is not None and tensor.number == _FLOAT32 and tensor.shape == (len(held),):
                found[name] = part.name
    return found


def put(directory: Path, path: Path, vectors: Mapping[str, torch.Tensor]) -> None:
    """Write values of vectors into their places of a copy of the file, as llama.cpp has them."""
    file, naming = _opened(directory)
    with path.open("r+b") as copy:
        for name, value in vectors.items():
            part = _part(naming, name, len(value))
            assert part is not None
            copy.seek(file.tensors[part.name].start)
            copy.write(raw_bytes(naming.value(part, value).float().contiguous()))


def _opened(directory: Path) -> tuple[GgufFile, Naming]:
    config = read_config(directory)
    cls = model_class(config, str(directory))
    if (row := row_of(cls)) is None:
        raise ModelError(f"{directory}: must be of an architecture whose GGUF names are known, {cls.__name__} is none. Pass --heal to fit.")
    file = GgufFile(directory / GGUF)
    return file, naming_of(file, config, row)


def _part(naming: Naming, name: str, rows: int) -> Part | None:
    """The one tensor that a vector is in the file; None where it is several, or has no place."""
    try:
        parts = naming.parts(name, (rows,))
    except ModelError:
        return None
    return parts[0] if len(parts) == 1 else None
