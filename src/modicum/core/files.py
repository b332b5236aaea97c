"""Files that came from elsewhere: JSON read with care, and links that lead outside a folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

from modicum.core.errors import DataError, ModelError, SettingError, quoted

MAX_JSON = 100_000_000  # bytes


def require_there(path: Path) -> None:
    """Raise ``DataError`` where data are to be read, and nothing is."""
    if not path.exists():
        raise no_data(path)


def no_data(path: Path) -> DataError:
    """What is said of data that are not there."""
    return DataError(f"data: {path} must be a file or folder, none is there. Check the path.")


def no_delta(path: str | os.PathLike[str]) -> SettingError:
    """What is said of a folder without a change of a model."""
    return SettingError(f"{path}: must hold delta.json, which adapt and delta write, or an adapter of PEFT, holds neither. Check the path.")


def sha256(path: Path) -> str:
    """The hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: str | os.PathLike[str], most: int | None = None) -> Any:
    """The value in a JSON file.

    *Raises*: ``ValueError`` saying why it cannot be had: no regular file (pipes and devices are not opened for reading), more bytes than ``most`` (by
    default 100 MB), no UTF-8, no JSON, nested too deeply, a key twice in one object.
    """
    return parse_json(_read(path, MAX_JSON if most is None else most))


def read_text(path: str | os.PathLike[str], most: int) -> str:
    """The text in a file. Raises ``ValueError`` where it cannot be had, as ``read_json``."""
    return _read(path, most).decode()


def _read(path: str | os.PathLike[str], most: int) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe without a writer would be waited for
        try:
            return _content(fd, most)
        finally:
            os.close(fd)
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file in one step: after a crash it is whole, old or new."""
    partial = path.with_name(path.name + ".new")
    try:
        with partial.open("w", encoding="utf-8") as file:
            json.dump(value, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise ModelError(f"{path}: cannot be written ({error.strerror}). Free space or choose another --out.") from None


def cache_folder() -> Path:
    """The user's cache folder for what this package keeps between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "modicum"


def keep_json(path: Path, value: Any) -> None:
    """Write a JSON file in one step, folders before it included; where that cannot be, nothing is kept."""
    with contextlib.suppress(OSError, RuntimeError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=path.name, delete=False, encoding="utf-8") as file:
            json.dump(value, file, indent=1)
        Path(file.name).replace(path)


def _content(fd: int, most: int) -> bytes:
    told = os.fstat(fd)
    if not stat.S_ISREG(told.st_mode):
        raise ValueError("it is no regular file")
    if told.st_size > most:
        raise ValueError(f"it has {told.st_size} bytes, more than {most}")
    with os.fdopen(fd, "rb", closefd=False) as file:
        return file.read(told.st_size)


def parse_json(raw: bytes) -> Any:
    """The value of a JSON text in UTF-8. Raises ``ValueError``, for a key that comes twice in one object too."""
    try:
        return json.loads(raw.decode(), object_pairs_hook=_unambiguous)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice")
    # Half a surrogate pair passes Python's parser and then fails in every place that prints or opens the name.
    "".join(text for pair in pairs for text in pair if isinstance(text, str)).encode()
    return found


def leads_outside(path: Path, directory: Path) -> bool:
    """Whether a path in ``directory`` is a link out of it; the ``blobs`` beside a hub cache's snapshots count as inside."""
    home = directory.resolve()
    allowed = [home, *(parent.parent / "blobs" for parent in home.parents if parent.name == "snapshots")]
    try:
        return not any(path.resolve().is_relative_to(folder) for folder in allowed)
    except (OSError, RuntimeError):  # links in a circle
        return True


def require_inside(directory: Path) -> None:
    """Raise ``ModelError`` where something in ``directory`` is a link out of it."""
    for path in sorted(directory.iterdir()):
        if path.is_symlink() and leads_outside(path, directory):
            raise ModelError(f"{directory}: {quoted(repr(path.name))} must lie in the directory, and it links outside. Copy it there.")
