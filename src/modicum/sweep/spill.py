"""Activations beyond a limit live in files: a tensor's data moves to a mapped file in place, whoever else holds the tensor."""

from __future__ import annotations

import tempfile
import weakref
from pathlib import Path

import torch

from modicum.core.memory import free_memory, own_memory, trim

# Below this a tensor is not worth a file.
_SMALL = 1 << 16
# Who refers to the data of a tensor that shares it with none: it, and what asks.
_ALONE = 2
# Bytes by which the process must have grown since memory was last given back; where it is not tight also this part of what is free: pages that
# were given back are cleared before they serve again, which took a quarter of the time of judging.
_GROWTH, _PART = 1 << 21, 1 / 32
# Bytes of growth from which on a stage's pieces are given back: under a hundredth of its time.
_PIECES = 1 << 24


class SpillPool:
    """Keeps the activations it is shown under ``limit`` bytes of memory; ``limit`` None keeps all in memory.

    What was shown first goes to files first: what a forward began with waits longer than what it has just made.

    ``tight``: memory is scarce enough to look for what only refers to itself, which takes time.
    """

    def __init__(self, limit: int | None, directory: Path | None = None, *, tight: bool = True):
        self.limit, self.directory, self.tight = limit, directory, tight
        self.held = 0
        self.spilled = 0
        self._trimmed = 0
        self._known: dict[int, tuple[weakref.ref[torch.Tensor], int]] = {}

    def admit(self, value: object) -> None:
        """Account for every tensor inside ``value`` (tensor, tuple, list or dict), moving to files what does not fit."""
        if isinstance(value, torch.Tensor):
            self._admit(value)
        elif isinstance(value, tuple | list):
            for item in value:
                self.admit(item)
        elif isinstance(value, dict):
            for item in value.values():
                self.admit(item)

    def settle(self) -> None:
        """Give freed memory back between measuring and treating: what either lets go lies in pieces that do not suit the other."""
        if own_memory() - self._trimmed > _PIECES:
            trim(circles=False)
            self._trimmed = own_memory()

    def trim(self) -> None:
        """Give freed memory back to the system, where it has grown enough to be worth the time; where it is ``tight``, what is in circles too."""
        grown = own_memory() - self._trimmed
        if grown > _GROWTH and (self.tight or grown > _PART * free_memory()):
            trim(circles=self.tight and self.limit is not None)
            self._trimmed = own_memory()

    def _admit(self, tensor: torch.Tensor) -> None:
        size = tensor.untyped_storage().nbytes()
        if self.limit is None or size < _SMALL or tensor.device.type != "cpu" or id(tensor) in self._known:
            return
        if tensor.untyped_storage().filename is not None:  # moved already, met again as a view or by another name
            return
        self.held += size
        self._known[id(tensor)] = weakref.ref(tensor), size
        weakref.finalize(tensor, self._forget, id(tensor))
        for identity, (ref, _) in list(self._known.items()) if self.held > self.limit else ():
            first = ref()
            if first is not None and first.is_contiguous() and (first is tensor or not _shared(first)):
                first.data = self._to_file(first)
                self.spilled += first.nbytes
                self._forget(identity)
            if self.held <= self.limit:
                return

    def _forget(self, identity: int) -> None:
        _, size = self._known.pop(identity, (None, 0))
        self.held -= size

    def _to_file(self, tensor: torch.Tensor) -> torch.Tensor:
        # Written, then mapped: a full disk is an error here, through the mapping it would end the process.
        with tempfile.NamedTemporaryFile(dir=self.directory, prefix="activations-") as file:
            file.write(tensor.detach().view(-1).view(torch.uint8).numpy().data)
            file.flush()
            return torch.from_file(file.name, shared=True, size=tensor.numel(), dtype=tensor.dtype).view(tensor.shape)


def _shared(tensor: torch.Tensor) -> bool:
    """Whether other tensors have a part in a tensor's data, which then would stay, and be written to without it."""
    count = getattr(torch._C, "_storage_Use_Count", None)
    return count is not None and count(tensor.untyped_storage()._cdata) > _ALONE
