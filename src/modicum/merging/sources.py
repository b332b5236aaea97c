"""What is merged, read piece by piece: checkpoints, deltas and adapters on their base, and tensors in memory."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from typing_extensions import override

from modicum.core.errors import ModelError, quoted
from modicum.core.tensorfile import Shards
from modicum.core.tensorformat import Room
from modicum.delta.applying import base_weights
from modicum.delta.delta import Delta, is_delta
from modicum.delta.opened import opened
from modicum.delta.peft import is_peft
from modicum.models.laid import laid
from modicum.models.located import locate
from modicum.models.open import open_model
from modicum.models.trainable import trainable
from modicum.models.weights import CheckpointWeights


class Source:
    """Tensors by name. ``label`` names it to people, ``digest`` tells what it holds."""

    label: str
    digest: str

    def names(self) -> list[str]:
        """Names of all tensors, in their order."""
        raise NotImplementedError

    def entry(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """Dtype and shape. Raises ``ModelError`` naming a tensor that is not there."""
        raise NotImplementedError

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Entries of the tensor laid flat; not to be written to."""
        raise NotImplementedError

    def read_into(self, room: Room, name: str, start: int, stop: int) -> torch.Tensor:
        """The same, where it is read from a file in memory that is used again."""
        return self.read(name, start, stop)

    def stored(self, name: str) -> str:
        """The name under which a tensor is stored. Raises ``ModelError`` where it is not."""
        self.entry(name)
        return name

    def whose(self, name: str) -> str:
        """The label of the model that a tensor is of."""
        return self.label

    def missing(self, name: str) -> ModelError:
        """What is said of a tensor that is not there."""
        return ModelError(
            f"{self.label}: must hold the tensor {quoted(name)}, which the base has, and does not. Merge models of one architecture."
        )


@dataclass
class Held(Source):
    """Tensors in memory."""

    tensors: Mapping[str, torch.Tensor]
    label: str

    @cached_property
    @override
    def digest(self) -> str:  # type: ignore[override]
        found = hashlib.sha256()
        for name, tensor in sorted(self.tensors.items()):
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return found.hexdigest()

    @override
    def names(self) -> list[str]:
        return list(self.tensors)

    @override
    def entry(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        if name not in self.tensors:
            raise self.missing(name)
        return self.tensors[name].dtype, tuple(self.tensors[name].shape)

    @override
    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self.tensors[name].detach().cpu().reshape(-1)[start:stop]


class Composed(Source):
    """Tensors of several sources under names of their own; files say where each is at home."""

    label: str

    @cached_property
    def homes(self) -> Mapping[str, tuple[Source, str]]:
        """By name whose a tensor is, and its name there."""
        raise NotImplementedError

    def home(self, name: str) -> tuple[Source, str]:
        """Whose a tensor is, and its name there. Raises ``ModelError`` where it is nobody's."""
        if name not in self.homes:
            raise self.missing(name)
        return self.homes[name]

    @override
    def names(self) -> list[str]:
        return list(self.homes)

    @override
    def entry(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        source, theirs = self.home(name)
        return source.entry(theirs)

    @override
    def whose(self, name: str) -> str:
        source, theirs = self.home(name)
        return source.whose(theirs)

    @override
    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        source, theirs = self.home(name)
        return source.read(theirs, start, stop)

    @override
    def read_into(self, room: Room, name: str, start: int, stop: int) -> torch.Tensor:
        source, theirs = self.home(name)
        return source.read_into(room, theirs, start, stop)


@dataclass
class Stored(Source):
    """A checkpoint's shards; a tensor that is stored only under the name it is tied to is found there."""

    directory: Path
    label: str

    def __post_init__(self) -> None:
        self.shards = Shards(self.directory)
        self._lock = threading.Lock()

    @cached_property
    @override
    def digest(self) -> str:  # type: ignore[override]
        return hashed(self.shards.files)

    @cached_property
    def _aliases(self) -> dict[str, str]:
        weights = open_model(self.directory).weights
        found = {}
        for names in weights.names.values():
            stored = [name for name in names if name in self.shards]
            found.update({name: stored[0] for name in names if stored and name not in self.shards})
        return found

    @override
    def names(self) -> list[str]:
        return self.shards.names()

    @override
    def stored(self, name: str) -> str:
        """The name under which a tensor is stored. Raises ``ModelError`` where it is not."""
        if name in self.shards:
            return name
        with self._lock:
            if name not in self._aliases:
                raise self.missing(name)
            return self._aliases[name]

    @override
    def entry(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        found = self.shards.entry(self.stored(name))
        return found.dtype, found.shape

    @override
    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self.shards.read_flat(self.stored(name), start, stop)

    @override
    def read_into(self, room: Room, name: str, start: int, stop: int) -> torch.Tensor:
        return self.shards.read_flat(self.stored(name), start, stop, room)


@dataclass
class Changed(Source):
    """A checkpoint under a delta: what that changes is made when it is read, parameter by parameter, and nothing is written."""

    base: Stored
    delta: Delta
    label: str
    digest: str
    _latest: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        model = open_model(self.base.directory)
        assert isinstance(model.weights, CheckpointWeights)
        self._weights, self._units, self._lock = model.weights, trainable(model.module), threading.Lock()
        self._read = base_weights(model)
        self._parameter: dict[str, str] = {}
        self._changes: dict[str, list[str]] = {}
        for name in self.delta.forms:
            if name not in self._units:
                raise ModelError(
                    f"{self.label}: changes a weight {quoted(name)}, which the base does not have. Give the base it was made on."
                )
            self._changes.setdefault(self._units[name].parameter, []).append(name)
        for parameter in self._changes:
            for each in self._weights.names[self._weights.first[parameter]]:
                for key, _ in self._weights._sources[self._weights._made_by[each]][1] if each in self._weights._made_by else ():
                    self._parameter[key] = parameter

    @override
    def names(self) -> list[str]:
        return self.base.names()

    @override
    def entry(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        return self.base.entry(name)

    @override
    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        key = self.base.stored(name)
        parameter = self._parameter.get(key)
        if parameter is None:
            return self.base.read(name, start, stop)
        with self._lock:
            if parameter not in self._latest:
                self._latest = {parameter: self._made(parameter)}
            return self._latest[parameter].get(key, self.base.shards.read(key)).reshape(-1)[start:stop]

    def _made(self, parameter: str) -> dict[str, torch.Tensor]:
        value = self._weights.read(parameter).clone()
        for name in self._changes[parameter]:
            unit = self._units[name]
            new = unit.stored(self.delta.weight(name, self._read(name)))
            if unit.expert is None:
                value = new.reshape(value.shape)
            else:
                value[unit.expert] = new
        return laid(self._weights, parameter, value)


@dataclass
class Moved(Source):
    """The base with what one model has otherwise than another: what a model learnt from a base of its own."""

    base: Source
    plus: Source
    minus: Source
    label: str

    @property
    @override
    def digest(self) -> str:  # type: ignore[override]
        return hashlib.sha256(f"{self.plus.digest} - {self.minus.digest}".encode()).hexdigest()

    @override
    def names(self) -> list[str]:
        return self.plus.names()

    @override
    def entry(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        found = self.plus.entry(name)
        if self.minus.entry(name)[1] != found[1]:
            raise ModelError(
                f"{self.label}: {quoted(name)} must have one shape in both models, has {found[1]} and {self.minus.entry(name)[1]}."
            )
        return torch.float32, found[1]

    @override
    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        base, plus, minus = (source.read(name, start, stop).double() for source in (self.base, self.plus, self.minus))
        return base + (plus - minus)


def hashed(files: list[Path]) -> str:
    """SHA-256 of files' contents, one after the other."""
    found = hashlib.sha256()
    for path in sorted(files):
        with path.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()


def source(given: str | Path, base: Stored | None = None) -> Source:
    """What a path names: a model, or on a ``base`` a delta or an adapter of PEFT."""
    path = Path(given)
    if base is not None and path.is_dir() and (is_delta(path) or is_peft(path)):
        files = [each for each in path.iterdir() if each.is_file() and each.suffix in (".safetensors", ".json")]
        return Changed(base, opened(path, base.directory), str(given), hashed(files))
    return Stored(locate(given), str(given))
