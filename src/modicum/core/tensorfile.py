"""Safetensors files read and written tensor by tensor, so that a model larger than memory never has to be in it.

The format is eight bytes of header length (little-endian), a JSON header, then the tensors' bytes without gaps. What a header says is
believed only after it was checked against the real size of the file.
"""

from __future__ import annotations

import difflib
import errno
import json
import math
import os
import reprlib
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeGuard

import torch

from modicum.core.errors import ModelError
from modicum.core.files import leads_outside, parse_json

__all__ = ["Entry", "Shards", "TensorFile", "TensorWriter", "file_bytes", "header_bytes"]

Wanted = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]

# In the order in which the safetensors library (0.8) lays tensors out: wide types first, so that every tensor is aligned.
_DTYPES: dict[str, torch.dtype] = {
    code: getattr(torch, attribute)
    for code, attribute in (
        ("U64", "uint64"),
        ("I64", "int64"),
        ("F64", "float64"),
        ("C64", "complex64"),
        ("F32", "float32"),
        ("U32", "uint32"),
        ("I32", "int32"),
        ("BF16", "bfloat16"),
        ("F16", "float16"),
        ("U16", "uint16"),
        ("I16", "int16"),
        ("F8_E5M2FNUZ", "float8_e5m2fnuz"),
        ("F8_E4M3FNUZ", "float8_e4m3fnuz"),
        ("F8_E8M0", "float8_e8m0fnu"),
        ("F8_E4M3", "float8_e4m3fn"),
        ("F8_E5M2", "float8_e5m2"),
        ("I8", "int8"),
        ("U8", "uint8"),
        ("BOOL", "bool"),
    )
    if hasattr(torch, attribute)
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_RANK = {dtype: rank for rank, dtype in enumerate(_CODES)}

_MAX_HEADER = 100_000_000  # bytes; the safetensors library refuses longer ones too
_MAX_COUNT = 2**63 - 1  # torch counts bytes and strides in signed 64 bits
_PIECE = 64 * 2**20  # bytes moved by one system call, which bounds what a copy from another device holds

_short = reprlib.Repr()  # hostile names and values must not fill a screen
_short.maxstring = 200


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one tensor lies: its dtype, its shape, and the bytes ``begin`` to ``end`` of the file (absolute offsets)."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's values."""
        return self.end - self.begin


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
        with _system_errors(self._who):
            if not self.path.is_file():
                raise ModelError(f"{self._who}: must be a file, and none is there. Check the path.")
            self._fd = os.open(self.path, os.O_RDONLY)
        self._release = weakref.finalize(self, os.close, self._fd)
        try:
            self.nbytes = os.fstat(self._fd).st_size
            self.metadata, self.entries = self._parse(self._header())
        except BaseException:
            self.close()
            raise

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
                f"{self._who}: rows of tensor {_short.repr(name)} must lie within its shape {list(entry.shape)}, got {start} to {stop}."
            )
        shape = (stop - start, *entry.shape[1:])
        row = math.prod(entry.shape[1:]) * entry.dtype.itemsize
        return self._fill(name, entry.dtype, shape, entry.begin + start * row)

    def close(self) -> None:
        """Close the file; closing twice does nothing."""
        self._release()

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _entry(self, name: str) -> Entry:
        if name not in self.entries:
            raise _unknown(self._who, name, self.entries)
        return self.entries[name]

    def _fill(self, name: str, dtype: torch.dtype, shape: tuple[int, ...], offset: int) -> torch.Tensor:
        # The device is named because loaders run under torch.device("meta"), which would leave nothing to read into.
        tensor = torch.empty(shape, dtype=dtype, device="cpu")
        self._pread(_raw(tensor), offset, f"tensor {_short.repr(name)}")
        return tensor

    def _pread(self, view: memoryview, offset: int, what: str) -> None:
        if not self._release.alive:
            raise ModelError(f"{self._who}: must be open to read {what}, and it was closed. Open it again.")
        done = 0
        with _system_errors(self._who):
            while done < len(view):
                got = os.preadv(self._fd, [view[done : done + _PIECE]], offset + done)
                if not got:
                    raise ModelError(f"{self._who}: {what} must have {len(view)} bytes, and the file ends after {done}. Fetch it again.")
                done += got

    def _header(self) -> bytes:
        prefix = bytearray(8)
        if self.nbytes < len(prefix):
            raise ModelError(f"{self._who}: must begin with 8 bytes of header length, and it has {self.nbytes} bytes. Fetch it again.")
        self._pread(memoryview(prefix), 0, "the header length")
        length, room = int.from_bytes(prefix, "little"), self.nbytes - len(prefix)
        if length > min(room, _MAX_HEADER):
            raise ModelError(
                f"{self._who}: the header must fit in the file and in {_MAX_HEADER} bytes, and it claims {length} of {room}. "
                "The file is truncated or not safetensors."
            )
        header = bytearray(length)
        self._pread(memoryview(header), len(prefix), "the header")
        return bytes(header)

    def _parse(self, raw: bytes) -> tuple[dict[str, str], dict[str, Entry]]:
        header = _json_object(raw, self._who, "the header")
        metadata = _checked_metadata(header.pop("__metadata__", {}), self._who)
        base = 8 + len(raw)
        entries = {name: self._checked(name, value, base) for name, value in header.items()}
        self._check_cover(entries, base)
        return metadata, entries

    def _checked(self, name: str, value: object, base: int) -> Entry:
        who = f"{self._who}: tensor {_short.repr(name)}"
        fields = value if isinstance(value, dict) else {}
        code, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
        if not isinstance(code, str) or not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
            raise ModelError(f"{who} must have a dtype, a shape and two data_offsets in whole numbers, got {_short.repr(value)}.")
        if code not in _DTYPES:
            raise ModelError(f"{who} must have a dtype that is known here, got {_short.repr(code)}. Known: {', '.join(_DTYPES)}.")
        begin, end = offsets
        if not begin <= end <= self.nbytes - base:
            raise ModelError(f"{who} must lie within the file's {self.nbytes - base} bytes of data, and lies at {_short.repr(offsets)}.")
        if end - begin != _size(_DTYPES[code], shape, who):
            raise ModelError(f"{who} must have the bytes of {code} {_short.repr(shape)}, and it has {end - begin}.")
        return Entry(_DTYPES[code], tuple(shape), base + begin, base + end)

    def _check_cover(self, entries: dict[str, Entry], base: int) -> None:
        at = base
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
            if entry.begin != at:
                raise ModelError(
                    f"{self._who}: tensor {_short.repr(name)} must begin where the tensor before it ends, "
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
        with ExitStack() as opened, _system_errors(self._who):
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

    def close(self) -> None:
        """Close all files; closing twice does nothing."""
        self._opened.close()

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _file(self, name: str) -> TensorFile:
        if name not in self._home:
            raise _unknown(self._who, name, self._home)
        return self._home[name]

    def _holder(self, name: str, file: TensorFile) -> TensorFile:
        if name not in file.entries:
            raise ModelError(f"{self._who}: the index puts tensor {_short.repr(name)} in {file.path.name}, and it is not there.")
        return file

    def _weight_map(self, index_name: str) -> dict[str, str]:
        path = self._inside(index_name)
        if path.stat().st_size > _MAX_HEADER:
            raise ModelError(f"{self._who}: {index_name} must have at most {_MAX_HEADER} bytes, and it has {path.stat().st_size}.")
        homes = _json_object(path.read_bytes(), self._who, index_name).get("weight_map")
        if not isinstance(homes, dict) or not all(isinstance(home, str) for home in homes.values()):
            raise ModelError(f"{self._who}: {index_name} must hold a weight_map from tensor names to file names.")
        return homes

    def _inside(self, name: str) -> Path:
        if name in ("", ".", "..") or any(sign in name for sign in "/\\\0"):
            raise ModelError(f"{self._who}: a weight file must be named by a plain file name, got {_short.repr(name)}.")
        path = self.directory / name
        if not path.is_file():
            raise ModelError(f"{self._who}: file {_short.repr(name)} must be there, and it is missing. Fetch the checkpoint again.")
        if leads_outside(path, self.directory):
            raise ModelError(f"{self._who}: {_short.repr(name)} must lie in the directory, and it links outside. Copy it there.")
        return path

    def _nothing_to_read(self, single: str, index_name: str) -> ModelError:
        wanted = f"{self._who}: must hold {single} or {index_name}"
        if others := sorted(path.name for path in self.directory.glob("*.safetensors")):
            return ModelError(f"{wanted}, and holds {_short.repr(others)} instead. Rename the file or fetch the index.")
        if pickled := sorted(path.name for pattern in ("pytorch_model*.bin*", "*.pt", "*.pth") for path in self.directory.glob(pattern)):
            return ModelError(
                f"{wanted}, and holds only {pickled[0]}: pickled checkpoints can run any code when opened and are refused. "
                "Convert it to safetensors, or pass --allow-pickle if you trust its author."
            )
        return ModelError(f"{wanted}, and holds neither. Check the path.")


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
        head, self.entries = _layout(entries, metadata, self._who)
        self._partial = self.path.with_name(self.path.name + ".partial")
        with _system_errors(self._who):
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
        step = _PIECE // entry.dtype.itemsize
        for first in range(0, flat.numel(), step):
            self._pwrite(_raw(flat[first : first + step].cpu()), entry.begin + first * entry.dtype.itemsize)
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
                f"of {len(self.entries)} were not, such as {_short.repr(min(self._missing))}."
            )
        try:
            with _system_errors(self._who):
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
        who = f"{self._who}: tensor {_short.repr(name)}"
        if not self._abandon.alive:
            raise ModelError(f"{who} must be written before the file is closed.")
        if name not in self.entries:
            raise _unknown(self._who, name, self.entries)
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
        with _system_errors(self._who):
            while done < len(view):
                done += os.pwrite(self._fd, view[done : done + _PIECE], offset + done)


def header_bytes(entries: Wanted, metadata: Mapping[str, str] | None = None) -> int:
    """Bytes before the first tensor in the file :class:`TensorWriter` would write: header length, header and padding."""
    return len(_layout(entries, metadata, "header_bytes")[0])


def file_bytes(entries: Wanted, metadata: Mapping[str, str] | None = None) -> int:
    """Size in bytes of the file :class:`TensorWriter` would write for the same arguments, exactly."""
    head, placed = _layout(entries, metadata, "file_bytes")
    return len(head) + sum(entry.nbytes for entry in placed.values())


def _layout(entries: Wanted, metadata: Mapping[str, str] | None, who: str) -> tuple[bytes, dict[str, Entry]]:
    """Everything before the data, and where each tensor goes, in the order of the safetensors library: by dtype, then by name."""
    for name, (dtype, shape) in entries.items():
        if not isinstance(name, str) or name == "__metadata__":
            raise ModelError(f"{who}: a tensor's name must be text other than __metadata__, got {_short.repr(name)}.")
        if dtype not in _CODES or not _counts(list(shape)):
            raise ModelError(f"{who}: tensor {_short.repr(name)} must have a dtype and shape that fit, got {dtype} {_short.repr(shape)}.")
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": _checked_metadata(dict(metadata), who)}
    at, places = 0, {}
    for name in sorted(entries, key=lambda name: (_RANK[entries[name][0]], name)):
        dtype, shape = entries[name][0], tuple(entries[name][1])
        places[name] = (dtype, shape, at, at := at + _size(dtype, shape, f"{who}: tensor {_short.repr(name)}"))
        header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": places[name][2:]}
    head = _encoded(header, who)
    return head, {name: Entry(dtype, shape, len(head) + begin, len(head) + end) for name, (dtype, shape, begin, end) in places.items()}


def _encoded(header: dict[str, Any], who: str) -> bytes:
    try:
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise ModelError(f"{who}: names and metadata must be text that UTF-8 can write, got {_short.repr(error.object)}.") from error
    text += b" " * (-len(text) % 8)
    if len(text) > _MAX_HEADER:
        raise ModelError(f"{who}: the header must fit in {_MAX_HEADER} bytes, and it needs {len(text)}. Use more files.")
    return len(text).to_bytes(8, "little") + text


def _json_object(raw: bytes, who: str, what: str) -> dict[str, Any]:
    try:
        value = parse_json(raw)
    except ValueError as error:
        reason = _short.repr(str(error))
        raise ModelError(f"{who}: {what} must be JSON in UTF-8 without duplicate keys, and it is not: {reason}. Fetch it again.") from error
    if not isinstance(value, dict):
        raise ModelError(f"{who}: {what} must be a JSON object, got {_short.repr(value)}.")
    return value


def _checked_metadata(metadata: object, who: str) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for pair in metadata.items() for text in pair):
        raise ModelError(f"{who}: __metadata__ must map text to text, got {_short.repr(metadata)}.")
    return metadata


def _counts(value: object) -> TypeGuard[list[int]]:
    """Whether this is a list of whole numbers from 0; truth values do not count."""
    return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)


def _size(dtype: torch.dtype, shape: Iterable[int], who: str) -> int:
    """Bytes of such a tensor. Strides must fit in 64 bits too, so an axis of length 0 does not excuse the others."""
    bound = dtype.itemsize
    empty = False
    for number in shape:
        bound *= max(number, 1)
        empty |= number == 0
        if bound > _MAX_COUNT:
            raise ModelError(f"{who} must be of a size that 64 bits can count, and its shape is {_short.repr(shape)}.")
    return 0 if empty else bound


def _raw(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, where they lie."""
    return tensor.flatten().view(torch.uint8).numpy().data


def _unknown(who: str, name: str, known: Iterable[str]) -> ModelError:
    # Models have thousands of tensors: near names are offered, never the whole list.
    close = difflib.get_close_matches(name, known, n=3)
    hint = f" Did you mean {' or '.join(map(_short.repr, close))}?" if close else ""
    return ModelError(f"{who}: must hold the tensor asked for, and it holds no {_short.repr(name)}.{hint}")


@contextmanager
def _system_errors(who: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ModelError(f"{who}: there is no space left on the disk. Free some, or write elsewhere.") from error
        raise ModelError(f"{who}: must be readable or writable here, and the system says: {error.strerror or error}.") from error


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
