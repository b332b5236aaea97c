"""Files of text as bytes and as characters: found in a folder, decompressed within bounds, and decoded with care."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import zlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from modicum.core.errors import DataError
from modicum.core.files import no_data

# Characters that are read of one path in all: hundreds of times what a run draws its sequences from.
MOST = 100_000_000
_OPEN: dict[str, Callable[..., Any]] = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}
_DAMAGED = (OSError, EOFError, lzma.LZMAError, zlib.error, ValueError)
# How files begin that are no text, though some happen to decode.
_BINARY = {
    b"%PDF": "a PDF", b"PK\x03\x04": "a zip archive or an office document", b"ARROW1": "an Arrow file", b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture", b"GIF8": "a picture", b"RIFF": "sound or a picture", b"fLaC": "sound", b"OggS": "sound", b"ID3": "sound",
    b"\x28\xb5\x2f\xfd": "compressed by zstd", b"\x1f\x8b": "compressed by gzip", b"\xfd7zXZ": "compressed by xz", b"BZh": "compressed by bzip2",
}  # fmt: skip
PARQUET = b"PAR1"
# How text in UTF-16 begins, which is full of zero bytes.
_WIDE = (b"\xff\xfe", b"\xfe\xff")


@dataclass
class Text:
    """Characters of a file, and whether there are more than were read."""

    value: str
    cut: bool = False


def find(path: Path, suffixes: Collection[str], others: Collection[str] = ()) -> list[Path]:
    """The path itself, or the files of a folder with one of the suffixes, where there are none with one of the ``others``.

    At every depth, in the order of their names; hidden ones are left out and links not followed, for they may lead out of the folder. Raises
    ``DataError``.
    """
    try:
        if not path.is_dir():
            return [path]
        found: list[Path] = []
        for here, folders, names in os.walk(path, onerror=_refuse):
            folders[:] = [name for name in folders if not name.startswith(".")]
            found += [Path(here, name) for name in names if not name.startswith(".")]
        readable = [file for file in found if kind(file) in {*suffixes, *others} and file.is_file() and not file.is_symlink()]
        chosen = [file for file in readable if kind(file) in suffixes] or readable
        return sorted(chosen, key=Path.as_posix)
    except OSError as error:
        raise DataError(f"data: {path} must be readable, it gave: {error}. Check the path and its permissions.") from error


def kind(file: Path) -> str:
    """Suffix in lower case, that of the compression left aside."""
    inner = file.with_suffix("") if file.suffix.lower() in _OPEN else file
    return inner.suffix.lower()


def begins(file: Path) -> bytes:
    """The first bytes of a file as it lies there. Raises ``DataError``."""
    with _opened(file, raw=True) as stream:
        return _read(file, stream, 8)


def read_text(file: Path, most: int = MOST) -> Text:
    """Characters of a file, decompressed, without a byte-order mark; of a longer one the whole lines within the first ``most`` bytes.

    Raises ``DataError`` for what cannot be opened or decompressed, is no UTF-8 (names the byte), or is no text.
    """
    with _opened(file) as stream:
        data = _read(file, stream, most + 1)
    cut = len(data) > most
    if cut:
        data = data[:most]
        data = data[: data.rfind(b"\n") + 1] or data
    _require_text(file, data)
    return Text(_decoded(file, data, cut), cut)


def _opened(file: Path, *, raw: bool = False) -> IO[bytes]:
    try:
        if not file.is_file():
            raise no_data(file)
        unpack = None if raw else _OPEN.get(file.suffix.lower())
        return file.open("rb") if unpack is None else unpack(file)
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise _unreadable(file, error) from error


def _read(file: Path, stream: IO[bytes], count: int) -> bytes:
    try:
        return stream.read(count)
    except _DAMAGED as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: BaseException) -> DataError:
    return DataError(f"data: {file} must be readable, it gave: {error}. Check its permissions and that it is whole.")


def _require_text(file: Path, data: bytes) -> None:
    what = next((what for magic, what in _BINARY.items() if data.startswith(magic)), "")
    if what or (b"\0" in data[:8192] and not data.startswith(_WIDE)):
        raise DataError(f"data: {file} must be text, it is {what or 'binary: it holds zero bytes'}. Give plain text, CSV, JSON or Parquet.")


def _decoded(file: Path, data: bytes, cut: bool) -> str:
    try:
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        if cut and error.start > len(data) - 4:  # a character that the end divides
            return data[: error.start].decode().removeprefix("\ufeff")
        raise DataError(
            f"data: {file} must be UTF-8, byte {error.start} of its content is 0x{data[error.start]:02x}. "
            "Convert the file to UTF-8, or leave it out."
        ) from error


def _refuse(error: OSError) -> None:
    """Stop the walk at a folder that cannot be listed, which it would pass over in silence."""
    raise error
