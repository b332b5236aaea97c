"""Texts that belong to pictures and recordings: a table beside them names each file with its caption or transcript."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from modicum.core.errors import DataError, listed
from modicum.core.files import leads_outside
from modicum.data import files, tables

# What the table is called, and its column of files, by the conventions of Hugging Face's folders of pictures and sound.
NAMES = ("metadata.csv", "metadata.jsonl", "metadata.tsv")
FILE = "file_name"


@dataclass
class Captions:
    """Text by file, and the columns it stood in."""

    texts: dict[Path, str] = field(default_factory=dict)
    columns: set[str] = field(default_factory=set)


def captions(folder: Path, text_column: str | None) -> Captions:
    """Texts of the files in ``folder``, as its tables (``metadata.csv`` or ``metadata.jsonl``, at any depth) name them; none without a table.

    Raises ``DataError`` for a row without file or text, a file that is not there or lies outside, and one that is named twice.
    """
    found = Captions()
    for table in files.find(folder, tables.SUFFIXES):
        if table.name in NAMES:
            for where, name, text in _rows(table, text_column, found.columns):
                _add(found, folder, where, table.parent / name, text)
    if text_column is not None and not found.columns:
        raise DataError(f"data: {folder} must hold {NAMES[0]} for --text-column to name its column, holds none. Leave --text-column out.")
    return found


def _add(found: Captions, folder: Path, where: str, file: Path, text: str) -> None:
    if not file.is_file() or leads_outside(file, folder):
        raise DataError(f"data: {where} must name a file in the folder, {file.name!r} is not there. Mend or remove the line.")
    if found.texts.setdefault(file, text) != text:
        raise DataError(f"data: {where} must name a file once, {file.name!r} has another text already. Remove one of the lines.")


def _rows(table: Path, text_column: str | None, columns: set[str]) -> Iterator[tuple[str, str, str]]:
    """Where each row stands, its file and its text."""
    for where, row in tables.records(table, files.read_text(table)):
        if not isinstance(name := row.get(FILE), str) or not name:
            raise DataError(f"data: {where} must have a {FILE}, has {listed(map(str, row)) or 'none'}. Name the file of each text there.")
        others = {key: value for key, value in row.items() if key != FILE}
        column = tables.column_of(where, list(others), text_column, [key for key, value in others.items() if isinstance(value, str)])
        if not isinstance(text := row[column], str) or not text.strip():
            raise DataError(f"data: {where} must have text in {column!r}, has none. Fill it in or remove the line.")
        columns.add(column)
        yield where, name, text
