"""Writing safetensors: header first, tensors one by one, whole or not there at all."""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from modicum.core.errors import ModelError
from modicum.core.tensorformat import (
    CODES,
    MAX_HEADER,
    PIECE,
    RANK,
    Entry,
    Wanted,
    are_counts,
    checked_metadata,
    raw_bytes,
    short,
    size_of,
    system_errors,
    unknown,
)


class TensorWriter:
    """A safetensors file whose tensors are written one at a time, in any order.

    The header follows from names, dtypes and shapes alone, so it is written first and every tensor then goes straight to its place. Until
    ``close`` the file is called ``<path>.partial``: an interrupted run leaves nothing under the name asked for. The bytes equal those of
    ``safetensors.torch.save_file`` (whose order of several metadata keys is random; here it is the given order).

    *Needs and cost*: contiguous CPU tensors are written from where they lie; others are first made contiguous, and those of another device
    come over 64 MiB at a time.

    *Raises*: ``ModelError`` for what cannot be stored, a tensor other than announced, a full disk, and a ``close`` before the last tensor.

    *Example*:

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with TensorWriter(f"{folder}/a.safetensors", {"w": (torch.float16, (2, 3))}) as writer:
    ...         writer.write("w", torch.ones(2, 3, dtype=torch.float16))
    ...     with TensorFile(f"{folder}/a.safetensors") as file:
    ...         print(file.read("w").sum().item(), file.nbytes)
    6.0 84
    """

    def __init__(self, path: str | os.PathLike[str], entries: Wanted, metadata: Mapping[str, str] | None = None) -> None:
        self.path = Path(path)
        self._who = f"file {self.path}"
        head, self.entries = layout(entries, metadata, self._who)
        self._partial = self.path.with_name(self.path.name + ".partial")
        with system_errors(self._who):
            self._fd = os.open(self._partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        self._abandon = weakref.finalize(self, _discard, self._fd, self._partial)
        self._missing = set(self.entries)
        try:
            self._pwrite(memoryview(head), 0)
        except BaseException:
            self._abandon()
            raise

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Put ``tensor`` in its place; it must have the announced dtype and shape, and comes once."""
        entry = self._expected(name, tensor)
        flat = tensor.detach().resolve_conj().resolve_neg().contiguous().flatten()
        step = PIECE // entry.dtype.itemsize
        for first in range(0, flat.numel(), step):
            self._pwrite(raw_bytes(flat[first : first + step].cpu()), entry.begin + first * entry.dtype.itemsize)
        self._missing.discard(name)

    def close(self) -> None:
        """Flush the file to the disk and give it its name; closing twice does nothing.

        *Raises*: ``ModelError`` where a tensor was not written; the unfinished file is removed.
        """
        if not self._abandon.alive:
            return
        if self._missing:
            self._abandon()
            raise ModelError(
                f"{self._who}: every tensor must be written before the file is closed, and {len(self._missing)} "
                f"of {len(self.entries)} were not, such as {short.repr(min(self._missing))}."
            )
        try:
            with system_errors(self._who):
                os.fsync(self._fd)
                self._partial.replace(self.path)
                _sync_folder(self.path.parent)
        finally:
            self._abandon()

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self._abandon()

    def _expected(self, name: str, tensor: torch.Tensor) -> Entry:
        who = f"{self._who}: tensor {short.repr(name)}"
        if not self._abandon.alive:
            raise ModelError(f"{who} must be written before the file is closed.")
        if name not in self.entries:
            raise unknown(self._who, name, self.entries)
        if name not in self._missing:
            raise ModelError(f"{who} must be written once, and it came again.")
        entry = self.entries[name]
        if tensor.dtype != entry.dtype or tuple(tensor.shape) != entry.shape:
            raise ModelError(f"{who} must be {entry.dtype} {list(entry.shape)} as announced, got {tensor.dtype} {list(tensor.shape)}.")
        if tensor.layout != torch.strided or tensor.is_meta:
            raise ModelError(f"{who} must have its values in memory as a dense tensor, got {tensor.layout} on {tensor.device}.")
        return entry

    def _pwrite(self, view: memoryview, offset: int) -> None:
        done = 0
        with system_errors(self._who):
            while done < len(view):
                done += os.pwrite(self._fd, view[done : done + PIECE], offset + done)


def header_bytes(entries: Wanted, metadata: Mapping[str, str] | None = None) -> int:
    """Bytes before the first tensor in the file :class:`TensorWriter` would write: header length, header and padding."""
    return len(layout(entries, metadata, "header_bytes")[0])


def file_bytes(entries: Wanted, metadata: Mapping[str, str] | None = None) -> int:
    """Size in bytes of the file :class:`TensorWriter` would write for the same arguments, exactly."""
    head, placed = layout(entries, metadata, "file_bytes")
    return len(head) + sum(entry.nbytes for entry in placed.values())


def layout(entries: Wanted, metadata: Mapping[str, str] | None, who: str) -> tuple[bytes, dict[str, Entry]]:
    """Everything before the data, and where each tensor goes, in the order of the safetensors library: by dtype, then by name."""
    for name, (dtype, shape) in entries.items():
        if not isinstance(name, str) or name == "__metadata__":
            raise ModelError(f"{who}: a tensor's name must be text other than __metadata__, got {short.repr(name)}.")
        if dtype not in CODES or not are_counts(list(shape)):
            raise ModelError(f"{who}: tensor {short.repr(name)} must have a dtype and shape that fit, got {dtype} {short.repr(shape)}.")
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": checked_metadata(dict(metadata), who)}
    at, places = 0, {}
    for name in sorted(entries, key=lambda name: (RANK[entries[name][0]], name)):
        dtype, shape = entries[name][0], tuple(entries[name][1])
        places[name] = (dtype, shape, at, at := at + size_of(dtype, shape, f"{who}: tensor {short.repr(name)}"))
        header[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": places[name][2:]}
    head = _encoded(header, who)
    return head, {name: Entry(dtype, shape, len(head) + begin, len(head) + end) for name, (dtype, shape, begin, end) in places.items()}


def _encoded(header: dict[str, Any], who: str) -> bytes:
    try:
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise ModelError(f"{who}: names and metadata must be text that UTF-8 can write, got {short.repr(error.object)}.") from error
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise ModelError(f"{who}: the header must fit in {MAX_HEADER} bytes, and it needs {len(text)}. Use more files.")
    return len(text).to_bytes(8, "little") + text


def _discard(fd: int, partial: Path) -> None:
    os.close(fd)
    partial.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a new name in ``folder`` survive a power cut."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
