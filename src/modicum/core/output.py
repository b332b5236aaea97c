"""Folders that a run may replace: those it wrote itself, known by a list of their files."""

from __future__ import annotations

import fnmatch
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modicum.core.config import write_asked
from modicum.core.errors import SettingError
from modicum.core.files import read_json, write_json

RECEIPT = "receipt.json"
# Hidden, so that it is not copied into what is made of an output later.
_LIST = ".modicum-files.json"
_FORMAT = "modicum-files"
# What other commands put beside it later.
_LATER = ("report.html", "frontier.json", "frontier.svg", "frontier.html")
# What earlier versions wrote without a list: files that name the format, and the names of what stood beside the weights.
_FIRST_WORDS = {"receipt.json": "modicum-receipt", "modicum.json": "modicum-container", "measurement.json": "modicum-measurement"}
_BESIDE = (
    "receipt.json", "plan.json", "modicum.json", "measurement.json", "findings.json", "sequences.safetensors",
    "config.json", "generation_config.json", "model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json",
    "tokenizer*.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "spiece.model", "chat_template.*", "*processor_config.json", "README.md", "LICENSE*",
)  # fmt: skip

# What stands in an unfinished one for a moment.
_HALF = ("*.safetensors.partial", "*.json.new")


def mark(directory: Path) -> None:
    """List the files of a finished folder in it: nothing else in it is ours to remove."""
    files = sorted(name for path in files_in(directory) if (name := str(path.relative_to(directory))) != _LIST)
    body = {"format": _FORMAT, "version": 1, "files": files}
    (directory / _LIST).write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")


def write_receipt(directory: Path, receipt: Mapping[str, Any]) -> None:
    """Write a receipt, and beside it what was asked of the command, where one is running."""
    write_json(directory / RECEIPT, receipt)
    write_asked(directory)


def require_apart(out: Path, inputs: Iterable[Path], flag: str) -> None:
    """Raise ``SettingError`` where writing ``out`` would touch what is read: the same folder, one above it, or one inside it."""
    place = Path(os.path.realpath(out))  # links in a circle stay as they are
    for path in inputs:
        given = Path(os.path.realpath(path))
        if place == given:
            raise SettingError(f"{out}: must not be what is read, is. Choose another {flag}.")
        if given.is_relative_to(place):
            raise SettingError(f"{out}: must not contain what is read, contains {path}. Choose another {flag}.")
        if given.is_dir() and place.is_relative_to(given):
            raise SettingError(f"{out}: must not lie in the folder that is read ({path}), does. Choose another {flag}.")


def require_ours(out: Path, flag: str) -> None:
    """Raise ``SettingError`` where something at ``out`` was not written by a run: it would be lost."""
    if not out.is_dir():
        raise SettingError(f"{out}: must be a folder that a run wrote to be replaced, is none. Choose another {flag}.")
    written, foreign = _written(out), unlisted(out)
    if foreign:
        why = f"holds {foreign[0]}, which no run wrote" if written else f"no run wrote it, and it holds {foreign[0]}"
        raise SettingError(f"{out}: is not replaced: {why}. Move it away, or choose another {flag}.")


def require_free(out: Path, inputs: Iterable[Path], overwrite: bool) -> None:
    """Raise ``SettingError`` where ``out`` must not be written: it is read, it is there, or it is not ours to replace."""
    require_apart(out, inputs, "--out")
    if os.path.lexists(out):
        if not overwrite:
            raise SettingError(f"{out}: exists already. Choose another --out, or pass --overwrite.")
        require_ours(out, "--out")


@contextmanager
def writing(out: Path, inputs: Sequence[Path], overwrite: bool) -> Iterator[Path]:
    """A folder of its own to write into, which takes the name ``out`` at the end; where anything fails, nothing has changed there.

    Raises ``SettingError`` where ``out`` must not be written, or cannot be.
    """
    require_free(out, inputs, overwrite)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
            made, former = Path(folder) / "made", Path(folder) / "former"
            made.mkdir()
            yield made
            mark(made)
            require_free(out, inputs, overwrite)  # somebody else may have written it meanwhile
            if os.path.lexists(out):
                out.rename(former)
            try:
                made.rename(out)
            except OSError:
                if former.exists():
                    former.rename(out)
                raise
    except OSError as error:
        raise SettingError(f"{out}: must be writable, is not ({error.strerror or error}). Free space, or choose another --out.") from None


def require_new_file(path: Path, overwrite: bool, flag: str = "--out") -> None:
    """Raise ``SettingError`` where a single file must not be written: it is a folder, or there and not to be overwritten."""
    if path.is_dir():
        raise SettingError(f"{path}: must be a file to write, is a folder. Name a file in it with {flag}.")
    if os.path.lexists(path) and not overwrite:
        raise SettingError(f"{path}: exists already. Choose another {flag}, or pass --overwrite.")


def write_file(path: Path, text: str, flag: str = "--out") -> None:
    """Write a single file. Raises ``SettingError`` where that fails."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SettingError(f"{path}: must be writable, is not ({error.strerror or error}). Choose another {flag}.") from None


def unlisted(directory: Path, *, unfinished: bool = False) -> list[str]:
    """Files of a result, by their paths in it, that its list does not have: no run wrote them. Of an ``unfinished`` one, which may have no list yet,
    those that no result has.
    """
    written = _written(directory) or ((*_BESIDE, *_HALF) if unfinished else ())
    return sorted(path for path in map(str, (file.relative_to(directory) for file in files_in(directory))) if not _listed(path, written))


def files_in(directory: Path) -> list[Path]:
    """Files and links in a folder, at any depth; links are not followed."""
    found = []
    for folder, folders, files in os.walk(directory):
        found += [Path(folder) / name for name in (*files, *(name for name in folders if (Path(folder) / name).is_symlink()))]
    return found


def _written(directory: Path) -> tuple[str, ...]:
    """Patterns of the files that a run wrote here; none where none did."""
    body = _json(directory / _LIST)
    if body.get("format") == _FORMAT and isinstance(listed := body.get("files"), list):
        return (_LIST, *_LATER, *(_literal(name) for name in listed if isinstance(name, str)))
    known = any(_json(directory / name).get("format") == word for name, word in _FIRST_WORDS.items())
    return (*_LATER, *_BESIDE) if known else ()


def _listed(path: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def _literal(name: str) -> str:
    """A pattern that only this name matches."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
