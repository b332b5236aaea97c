"""Safetensors files read and written tensor by tensor, so that a model larger than memory never has to be in it.

The format is eight bytes of header length (little-endian), a JSON header, then the tensors' bytes without gaps. What a header says is
believed only after it was checked against the real size of the file.
"""

from __future__ import annotations

import copy
import math
import os
import weakref
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from modicum.core.errors import ModelError
from modicum.core.files import leads_outside, parse_json
from modicum.core.tensorformat import (
    DTYPES,
    MAX_HEADER,
    PIECE,
    Entry,
    Room,
    are_counts,
    checked_metadata,
    raw_bytes,
    short,
    size_of,
    system_errors,
    unknown,
)


class TensorFile:
    """One safetensors file, open for reading tensors one at a time.

    The header is read and checked whole when the file is opened; ``read`` then costs the tensor's own bytes and nothing else. Any number of
    threads may read at once; ``close`` comes after the last of them.

    *Attributes*: ``path``; ``metadata`` (the header's free text); ``entries`` (name → :class:`Entry`, in the header's order); ``nbytes``
    (size of the file).

    *Raises*: ``ModelError`` naming the file, and the tensor where there is one, for anything that is not a well-formed safetensors file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._who = f"file {self.path}"
        self._open()
        try:
            self.metadata, self.entries = self._parse(self._header())
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        with system_errors(self._who):
            if not self.path.is_file():
                raise ModelError(f"{self._who}: must be a file, and none is there. Check the path.")
            self._fd = os.open(self.path, os.O_RDONLY)
            self._release = weakref.finalize(self, os.close, self._fd)
            self.nbytes = os.fstat(self._fd).st_size

    def again(self) -> TensorFile:
        """The same file opened once more, its header as it was read: a file of many small tensors is not parsed for each of them.

        *Raises*: ``ModelError`` where it is gone or of another size.
        """
        other = copy.copy(self)
        other._open()
        if other.nbytes != self.nbytes:
            other.close()
            raise ModelError(
                f"{self._who}: must be as it was, had {self.nbytes} bytes and has {other.nbytes}. Let nobody else write to it."
            )
        return other

    def read(self, name: str) -> torch.Tensor:
        """The tensor called ``name``, freshly allocated on the CPU. *Raises* ``ModelError`` for unknown names and truncated files."""
        entry = self._entry(name)
        return self._fill(name, entry.dtype, entry.shape, entry.begin)

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Entries ``start`` to ``stop`` of the tensor's first axis, without reading the others.

        *Shapes*: a tensor (rows, ...) gives (stop - start, ...).

        *Raises*: ``ModelError`` where the tensor has no axis or the range leaves it.
        """
        entry = self._entry(name)
        if not entry.shape or not 0 <= start <= stop <= entry.shape[0]:
            raise ModelError(
                f"{self._who}: rows of tensor {short.repr(name)} must lie within its shape {list(entry.shape)}, got {start} to {stop}."
            )
        shape = (stop - start, *entry.shape[1:])
        row = math.prod(entry.shape[1:]) * entry.dtype.itemsize
        return self._fill(name, entry.dtype, shape, entry.begin + start * row)

    def read_flat(self, name: str, start: int, stop: int, room: Room | None = None) -> torch.Tensor:
        """Entries ``start`` to ``stop`` of the tensor laid flat, without reading the others; in a ``room`` they stay until it is read into again.

        *Raises*: ``ModelError`` where the range leaves the tensor.
        """
        entry = self._entry(name)
        if not 0 <= start <= stop <= math.prod(entry.shape):
            raise ModelError(f"{self._who}: entries of tensor {short.repr(name)} must lie within it, got {start} to {stop}.")
        tensor, view = (room or Room()).of(entry.dtype, stop - start)
        self._pread(view, entry.begin + start * entry.dtype.itemsize, name)
        return tensor

    def close(self) -> None:
        """Close the file; closing twice does nothing."""
        self._release()

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _entry(self, name: str) -> Entry:
        if name not in self.entries:
            raise unknown(self._who, name, self.entries)
        return self.entries[name]

    def _fill(self, name: str, dtype: torch.dtype, shape: tuple[int, ...], offset: int) -> torch.Tensor:
        # The device is named because loaders run under torch.device("meta"), which would leave nothing to read into.
        tensor = torch.empty(shape, dtype=dtype, device="cpu")
        self._pread(raw_bytes(tensor), offset, name)
        return tensor

    def _pread(self, view: memoryview, offset: int, name: str | None, what: str = "") -> None:
        if not self._release.alive:
            raise ModelError(f"{self._who}: must be open to read {_called(name, what)}, and it was closed. Open it again.")
        done = 0
        with system_errors(self._who):
            while done < len(view):
                got = os.preadv(self._fd, [view[done : done + PIECE]], offset + done)
                if not got:
                    short_of = f"{_called(name, what)} must have {len(view)} bytes, and the file ends after {done}"
                    raise ModelError(f"{self._who}: {short_of}. Fetch it again.")
                done += got

    def _header(self) -> bytes:
        prefix = bytearray(8)
        if self.nbytes < len(prefix):
            raise ModelError(f"{self._who}: must begin with 8 bytes of header length, and it has {self.nbytes} bytes. Fetch it again.")
        self._pread(memoryview(prefix), 0, None, "the header length")
        if prefix == b"version ":
            raise ModelError(f"{self._who}: must hold tensors, is a pointer of Git LFS to them. Fetch the file itself: git lfs pull.")
        length, room = int.from_bytes(prefix, "little"), self.nbytes - len(prefix)
        if length > min(room, MAX_HEADER):
            raise ModelError(
                f"{self._who}: the header must fit in the file and in {MAX_HEADER} bytes, and it claims {length} of {room}. "
                "The file is truncated or not safetensors."
            )
        header = bytearray(length)
        self._pread(memoryview(header), len(prefix), None, "the header")
        return bytes(header)

    def _parse(self, raw: bytes) -> tuple[dict[str, str], dict[str, Entry]]:
        header = _json_object(raw, self._who, "the header")
        metadata = checked_metadata(header.pop("__metadata__", {}), self._who)
        base = 8 + len(raw)
        entries = {name: self._checked(name, value, base) for name, value in header.items()}
        self._check_cover(entries, base)
        return metadata, entries

    def _checked(self, name: str, value: object, base: int) -> Entry:
        who = f"{self._who}: tensor {short.repr(name)}"
        fields = value if isinstance(value, dict) else {}
        code, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
        if not isinstance(code, str) or not are_counts(shape) or not are_counts(offsets) or len(offsets) != 2:
            raise ModelError(f"{who} must have a dtype, a shape and two data_offsets in whole numbers, got {short.repr(value)}.")
        if code not in DTYPES:
            raise ModelError(f"{who} must have a dtype that is known here, got {short.repr(code)}. Known: {', '.join(DTYPES)}.")
        begin, end = offsets
        if not begin <= end <= self.nbytes - base:
            raise ModelError(f"{who} must lie within the file's {self.nbytes - base} bytes of data, and lies at {short.repr(offsets)}.")
        if end - begin != size_of(DTYPES[code], shape, who):
            raise ModelError(f"{who} must have the bytes of {code} {short.repr(shape)}, and it has {end - begin}.")
        return Entry(DTYPES[code], tuple(shape), base + begin, base + end)

    def _check_cover(self, entries: dict[str, Entry], base: int) -> None:
        at = base
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
            if entry.begin != at:
                raise ModelError(
                    f"{self._who}: tensor {short.repr(name)} must begin where the tensor before it ends, "
                    f"at byte {at - base} of the data, and begins at {entry.begin - base}."
                )
            at = entry.end
        if at != self.nbytes:
            raise ModelError(f"{self._who}: the tensors must fill the file, and its last {self.nbytes - at} bytes belong to none.")


class Shards:
    """The weights of one model directory, whether in a single safetensors file or in several behind an index.

    Where both are there the single file counts, as for Transformers. Nothing outside the directory is read: a shard's name is a plain file
    name, and links are followed only within the directory and, in a hub cache (``models--x/snapshots/<revision>``), to the ``blobs`` beside
    its snapshots. Tensors which lie in a shard and which the index does not name are left alone.

    *Attributes*: ``files`` (the weight files' paths, sorted); ``nbytes`` (the sum of their sizes in bytes).

    *Raises*: ``ModelError`` where a file or tensor is missing or malformed, where a name leads outside, and for pickled checkpoints.
    """

    def __init__(
        self, directory: str | os.PathLike[str], *, index_name: str = "model.safetensors.index.json", single: str = "model.safetensors"
    ) -> None:
        self.directory = Path(directory)
        self._who = f"checkpoint {self.directory}"
        with ExitStack() as opened, system_errors(self._who):
            if (self.directory / single).is_file():
                files = {single: opened.enter_context(TensorFile(self._inside(single)))}
                self._home = dict.fromkeys(files[single].entries, files[single])
            elif (self.directory / index_name).is_file():
                homes = self._weight_map(index_name)
                files = {name: opened.enter_context(TensorFile(self._inside(name))) for name in sorted(set(homes.values()))}
                self._home = {name: self._holder(name, files[home]) for name, home in homes.items()}
            else:
                raise self._nothing_to_read(single, index_name)
            self._opened = opened.pop_all()
        self.files = [file.path for file in files.values()]
        self.nbytes = sum(file.nbytes for file in files.values())

    @property
    def source(self) -> Path:
        """What is opened for these tensors."""
        return self.directory

    def notes(self) -> Iterator[str]:
        """What is to be told of how the tensors were stored."""
        yield from ()

    def names(self) -> list[str]:
        """Names of all tensors, in the order of the index or of the single file's header."""
        return list(self._home)

    def __contains__(self, name: object) -> bool:
        return name in self._home

    def entry(self, name: str) -> Entry:
        """Dtype, shape and place of the tensor called ``name``. *Raises* ``ModelError`` where there is none."""
        return self._file(name).entries[name]

    def file_of(self, name: str) -> Path:
        """The file in which the tensor called ``name`` lies."""
        return self._file(name).path

    def read(self, name: str) -> torch.Tensor:
        """The tensor called ``name``, as :meth:`TensorFile.read` gives it."""
        return self._file(name).read(name)

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """A range of the tensor's first axis, as :meth:`TensorFile.read_rows` gives it."""
        return self._file(name).read_rows(name, start, stop)

    def read_flat(self, name: str, start: int, stop: int, room: Room | None = None) -> torch.Tensor:
        """A range of the tensor laid flat, as :meth:`TensorFile.read_flat` gives it."""
        return self._file(name).read_flat(name, start, stop, room)

    def close(self) -> None:
        """Close all files; closing twice does nothing."""
        self._opened.close()

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _file(self, name: str) -> TensorFile:
        if name not in self._home:
            raise unknown(self._who, name, self._home)
        return self._home[name]

    def _holder(self, name: str, file: TensorFile) -> TensorFile:
        if name not in file.entries:
            raise ModelError(f"{self._who}: the index puts tensor {short.repr(name)} in {file.path.name}, and it is not there.")
        return file

    def _weight_map(self, index_name: str) -> dict[str, str]:
        path = self._inside(index_name)
        if path.stat().st_size > MAX_HEADER:
            raise ModelError(f"{self._who}: {index_name} must have at most {MAX_HEADER} bytes, and it has {path.stat().st_size}.")
        homes = _json_object(path.read_bytes(), self._who, index_name).get("weight_map")
        if not isinstance(homes, dict) or not all(isinstance(home, str) for home in homes.values()):
            raise ModelError(f"{self._who}: {index_name} must hold a weight_map from tensor names to file names.")
        return homes

    def _inside(self, name: str) -> Path:
        if name in ("", ".", "..") or any(sign in name for sign in "/\\\0"):
            raise ModelError(f"{self._who}: a weight file must be named by a plain file name, got {short.repr(name)}.")
        path = self.directory / name
        if not path.is_file():
            raise ModelError(f"{self._who}: file {short.repr(name)} must be there, and it is missing. Fetch the checkpoint again.")
        if leads_outside(path, self.directory):
            raise ModelError(f"{self._who}: {short.repr(name)} must lie in the directory, and it links outside. Copy it there.")
        return path

    def _nothing_to_read(self, single: str, index_name: str) -> ModelError:
        wanted = f"{self._who}: must hold {single} or {index_name}"
        if others := sorted(path.name for path in self.directory.glob("*.safetensors")):
            return ModelError(f"{wanted}, and holds {short.repr(others)} instead. Rename the file or fetch the index.")
        if pickled := sorted(path.name for pattern in ("pytorch_model*.bin*", "*.pt", "*.pth") for path in self.directory.glob(pattern)):
            return ModelError(
                f"{wanted}, and holds only {pickled[0]}: pickled checkpoints can run any code when opened and are refused. "
                "Convert it to safetensors, or pass --allow-pickle if you trust its author."
            )
        return ModelError(f"{wanted}, and holds neither. Check the path.")


def _called(name: str | None, what: str) -> str:
    return what if name is None else f"tensor {short.repr(name)}"


def _json_object(raw: bytes, who: str, what: str) -> dict[str, Any]:
    try:
        value = parse_json(raw)
    except ValueError as error:
        reason = short.repr(str(error))
        raise ModelError(f"{who}: {what} must be JSON in UTF-8 without duplicate keys, and it is not: {reason}. Fetch it again.") from error
    if not isinstance(value, dict):
        raise ModelError(f"{who}: {what} must be a JSON object, got {short.repr(value)}.")
    return value
