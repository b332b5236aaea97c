"""Files of a checkpoint written piece by piece by any number of threads, and gone on with after a kill."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from typing_extensions import override

from modicum.core.tensorformat import Entry, raw_bytes, system_errors
from modicum.core.tensorwriter import layout

_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Sink:
    """Takes the pieces of every tensor."""

    def done(self, name: str) -> dict[str, Any] | None:
        """What was told of a tensor that is written whole; None where it is not."""
        return None

    def put(self, name: str, start: int, values: torch.Tensor) -> None:
        """Entries from ``start`` on of the tensor laid flat, in the dtype that is stored."""
        raise NotImplementedError

    def finish(self, name: str, told: dict[str, Any]) -> None:
        """Say that a tensor is whole, and what is told of it."""


class Memory(Sink):
    """Tensors in memory."""

    def __init__(self, wanted: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]):
        self.tensors = {name: torch.empty(shape, dtype=dtype) for name, (dtype, shape) in wanted.items()}

    @override
    def put(self, name: str, start: int, values: torch.Tensor) -> None:
        self.tensors[name].reshape(-1)[start : start + values.numel()] = values


class Files(Sink):
    """Safetensors files in a folder; a list beside them says which tensors are whole, for whoever goes on.

    What was written outlives the process, and not always the machine: after another start of that, everything is written again.

    *Raises*: ``ModelError`` for a full disk.
    """

    def __init__(self, folder: Path, files: Mapping[str, Mapping[str, tuple[torch.dtype, tuple[int, ...]]]]):
        self.folder, self._lock = folder, threading.Lock()
        self._list = folder.parent / "written.jsonl"
        self._told = self._before()
        self._homes: dict[str, tuple[int, Entry]] = {}
        self._fds: list[int] = []
        with system_errors(f"folder {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
            for file, wanted in files.items():
                self._begin(folder / file, wanted)
            self._journal = self._list.open("a", encoding="utf-8")
            self._journal.write(json.dumps({"boot": _boot()}) + "\n")

    def _begin(self, path: Path, wanted: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
        head, entries = layout(wanted, {"format": "pt"}, f"file {path}")
        size = max([len(head), *(entry.end for entry in entries.values())])
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        self._fds.append(fd)
        if os.fstat(fd).st_size != size or os.pread(fd, len(head), 0) != head:
            self._told = {name: told for name, told in self._told.items() if name not in wanted}
            os.ftruncate(fd, 0)
            _take(fd, size)
            os.pwrite(fd, head, 0)
        self._homes |= {name: (fd, entry) for name, entry in entries.items()}

    def _before(self) -> dict[str, dict[str, Any]]:
        """What an interrupted run of this very request told of the tensors that it had written."""
        found: dict[str, dict[str, Any]] = {}
        same = False
        with suppress(OSError, ValueError, KeyError, TypeError):
            for line in self._list.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                if "boot" in row:
                    same = row["boot"] == _boot()
                    found = found if same else {}
                elif same:
                    found[row["name"]] = row["told"]
        return found

    @override
    def done(self, name: str) -> dict[str, Any] | None:
        return self._told.get(name)

    @override
    def put(self, name: str, start: int, values: torch.Tensor) -> None:
        fd, entry = self._homes[name]
        view, offset = raw_bytes(values.contiguous()), entry.begin + start * entry.dtype.itemsize
        done = 0
        with system_errors(f"folder {self.folder}"):
            while done < len(view):
                done += os.pwrite(fd, view[done:], offset + done)

    @override
    def finish(self, name: str, told: dict[str, Any]) -> None:
        with self._lock, system_errors(f"folder {self.folder}"):
            self._journal.write(json.dumps({"name": name, "told": told}) + "\n")
            self._journal.flush()

    def close(self) -> None:
        """Close all files, which are whole when every tensor was told."""
        self._journal.close()
        for fd in self._fds:
            os.close(fd)

    def sync(self) -> None:
        """Have what was written outlive the machine."""
        with system_errors(f"folder {self.folder}"):
            for fd in self._fds:
                os.fsync(fd)


def _take(fd: int, size: int) -> None:
    """Have room for so many bytes, so that a disk that is too full says so at once and writing need not ask for each block."""
    try:
        os.posix_fallocate(fd, 0, size)
    except (AttributeError, OSError) as error:  # some systems and some disks cannot
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        os.ftruncate(fd, size)


def _boot() -> str:
    """Which start of the machine this is; nothing where it does not say."""
    with suppress(OSError):
        return _BOOT.read_text().strip()
    return ""
