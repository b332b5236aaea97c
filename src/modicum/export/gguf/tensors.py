"""A GGUF file's tensors as if they were those of a checkpoint: under the names and in the shapes of a model's class, each made when it is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from typing_extensions import override

from modicum.core.errors import ModelError, quoted
from modicum.core.finite import finite
from modicum.core.tensorfile import Shards
from modicum.core.tensorformat import Entry
from modicum.core.unit import Unit
from modicum.export.gguf.naming import MATRICES, Naming, Part
from modicum.export.gguf.reader import GgufFile
from modicum.models.dequantized.view import rounded_before
from modicum.models.structure import find_units
from modicum.models.weights import Weights

# Tensors that say how positions turn, which a config says too.
_TURNS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


@dataclass(frozen=True)
class _Weight:
    """A weight of the class: the parts that hold it, its shape as they hold it, and what makes the stored one of that."""

    parts: list[Part]
    shape: tuple[int, ...]
    unit: Unit | None
    held: torch.Tensor


class GgufTensors(Shards):
    """What a file holds for the weights of ``module``, whose values nobody looks at; other files of the model are in ``directory``.

    Raises ``ModelError`` where a weight has no tensor in the file, or one of another shape, and where a tensor is left over.
    """

    def __init__(self, file: GgufFile, module: nn.Module, naming: Naming, directory: Path):
        self.file, self.directory, self._naming = file, directory, naming
        self.files, self.nbytes = [file.path], file.path.stat().st_size
        weights = Weights(module)
        units = find_units(module, weights)
        self._weights = {name: self._placed(name, weights.held(name), _matrix(name, units)) for name in weights.names}
        left = set(file.tensors) - set(_TURNS) - {part.name for weight in self._weights.values() for part in weight.parts}
        if left:
            raise ModelError(f"{file.path}: every tensor must belong to the model, {quoted(min(left))} does not. Check the file.")

    def _placed(self, name: str, held: torch.Tensor, unit: Unit | None) -> _Weight:
        stacked = self._naming.stacked(name)
        one = unit.shape if unit is not None else tuple(held.shape[1:] if stacked else held.shape)
        parts, whole = self._naming.parts(name, one), (len(held), *one) if stacked else one
        path, tensors = self.file.path, self.file.tensors
        if missing := next((part.name for part in parts if part.name not in tensors), None):
            raise ModelError(f"{path}: must hold {quoted(missing)}, does not. Fetch it again.")
        shapes = [tensors[part.name].shape for part in parts]
        if sum(torch.Size(one).numel() for one in shapes) != torch.Size(whole).numel() or len({one[-1] for one in shapes}) > 1:
            raise ModelError(f"{path}: {parts[0].name} must have the shape of {name}, {whole}, has {shapes[0]}. Check the file.")
        return _Weight(parts, whole, unit, torch.empty_like(held, device="meta"))

    @property
    @override
    def source(self) -> Path:
        return self.file.path

    @override
    def notes(self) -> Iterator[str]:
        types = {name: {self.file.tensors[part.name].type for part in weight.parts} for name, weight in self._weights.items()}
        known = set(self.file.quantized)
        yield from rounded_before({name: f"{'/'.join(sorted(found))} (GGUF)" for name, found in types.items() if found & known})

    @override
    def names(self) -> list[str]:
        return list(self._weights)

    @override
    def __contains__(self, name: object) -> bool:
        return name in self._weights

    @override
    def entry(self, name: str) -> Entry:
        held = self._weights[name].held
        return Entry(held.dtype, tuple(held.shape), 0, held.numel() * held.dtype.itemsize)

    @override
    def file_of(self, name: str) -> Path:
        return self.file.path

    @override
    def read(self, name: str) -> torch.Tensor:
        weight = self._weights[name]
        values = [self._naming.read(part, self.file.read(part.name)) for part in weight.parts]
        if not all(map(finite, values)):
            raise ModelError(f"{self.file.path}: weights must be finite, {quoted(weight.parts[0].name)} is not. Fetch it again.")
        value = _joined(values, weight.parts, weight.shape)
        return (weight.unit.stored(value) if weight.unit is not None else value.reshape(weight.held.shape)).to(weight.held.dtype)

    @override
    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self.read(name)[start:stop].clone()

    @override
    def close(self) -> None:
        """Nothing is open between two readings."""


def _matrix(name: str, units: Mapping[str, Unit]) -> Unit | None:
    unit = units.get(name)
    return unit if unit is not None and unit.kind in MATRICES else None


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
