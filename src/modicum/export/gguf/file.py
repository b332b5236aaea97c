"""One GGUF file: what it will hold, its exact bytes before anything is made, and how it is written tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from typing_extensions import override

from modicum.core.errors import ModelError
from modicum.export._family import SHARD_BYTES, Layout
from modicum.export.gguf.fields import ALIGNMENT, Place, Value, aligned, head

FILE = "model.gguf"


@dataclass(frozen=True)
class Tensor:
    """One tensor of the file: where it stands in the head, and how its bytes are made, one piece after another."""

    place: Place
    make: Callable[[], Iterable[torch.Tensor]]

    def pieces(self) -> Iterator[memoryview]:
        """Its bytes as they are written. Raises ``ModelError`` where they are not as many as the head says."""
        count = 0
        for piece in self.make():
            raw = piece.contiguous().reshape(-1).view(torch.uint8).numpy().data
            count += len(raw)
            yield raw
        if count != self.place.nbytes:
            raise ModelError(f"{self.place.name}: must have {self.place.nbytes} bytes by the plan, has {count}. Report this.")


@dataclass
class File(Layout):
    """Everything that is written, in order."""

    values: dict[str, Value] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def place(self, tensor: Tensor) -> None:
        """Append a tensor. Raises ``ModelError`` where two want one name."""
        name = tensor.place.name
        if name in self.tensors:
            raise ModelError(f"target gguf: two weights of the model have the name {name} there. Pass --target modicum.")
        self.tensors[name] = tensor
        self.entries[name] = (torch.uint8, (tensor.place.nbytes,))

    def _head(self) -> bytes:
        return head(self.values, [tensor.place for tensor in self.tensors.values()])

    @override
    def nbytes(self, limit: int = SHARD_BYTES) -> int:
        return len(self._head()) + sum(aligned(tensor.place.nbytes) for tensor in self.tensors.values())

    @override
    def write(self, directory: Path, limit: int = SHARD_BYTES) -> list[Path]:
        path = directory / FILE
        with path.open("wb") as file:
            file.write(self._head())
            for tensor in self.tensors.values():
                for piece in tensor.pieces():
                    file.write(piece)
                file.write(bytes(-tensor.place.nbytes % ALIGNMENT))
        return [path]

    @override
    def compare(self, directory: Path) -> int:
        path = directory / FILE
        with path.open("rb") as file:
            file.seek(len(self._head()))
            for tensor in self.tensors.values():
                for piece in tensor.pieces():
                    if file.read(len(piece)) != piece:
                        raise ModelError(f"{path}: {tensor.place.name} must be read back as it was written, differs. Check the disk.")
                file.seek(-tensor.place.nbytes % ALIGNMENT, 1)
        return len(self.tensors)
