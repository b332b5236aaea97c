"""Tables of text, CSV, TSV, JSON and Parquet: the rows' text column, found by its name or told."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from modicum.core.errors import DataError, listed, near, quoted
from modicum.data.files import Text

SUFFIXES = frozenset({".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet"})
# What the column of the documents is called, the surest first.
NAMES = ("text", "content", "document", "body", "article", "sentence", "review", "abstract", "transcription", "transcript", "caption")
_DELIMITERS = {".tsv": "\t", ".csv": ",;\t|"}
_ROWS = 1000  # of Parquet, read at once


@dataclass(frozen=True)
class Cell:
    """What stands in the text column of a row, and where."""

    where: str
    value: Any


def column_of(where: str, names: Sequence[str], asked: str | None, texts: Sequence[str] | None = None) -> str:
    """The column of the text: the one ``asked`` for, the one of a usual name, or the only one (of ``texts``, those that hold text).

    Raises ``DataError`` naming the columns where that is not one.
    """
    if twice := next((name for name in names if name == (asked or "text") and names.count(name) > 1), None):
        raise DataError(f"data: {where} must have one column {twice!r}, has several. Rename all but one.")
    if asked is not None:
        if asked in names:
            return asked
        raise DataError(f"data: {where} must have the column {asked!r} that --text-column names, has not. {near(asked, names)}")
    if "text" in names:
        return "text"
    usual = [name for name in names if name.strip().casefold() in NAMES]
    only = names if texts is None else texts
    if len(usual) == 1 or (not usual and len(only) == 1):
        return (usual or only)[0]
    raise DataError(
        f"data: {where} has the columns {listed(names) or 'none'}; which holds the text cannot be told. Name it with --text-column."
    )


def require_texts(where: str, record: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raise ``DataError`` for a row that lacks a text under one of ``names``, with what it has there."""
    for name in names:
        if not isinstance(record.get(name), str):
            found = f"has {quoted(json.dumps(record[name], default=str))} there" if name in record else "has no such column"
            raise DataError(f"data: {where} must have a text under {name}, {found}. Mend or remove the line.")


def records(file: Path, text: Text) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a table in CSV, TSV or JSON lines as objects, each with where it stands. Raises ``DataError``."""
    if file.suffix.lower() == ".jsonl":
        yield from json_lines(file, text)
        return
    with _long_fields():
        rows = list(_table(file, text, file.suffix.lower()))
    names = [name.strip() for name in rows[0][1]] if rows else []
    for place, fields in _even(file, rows[1:], len(names)):
        yield f"{file}, line {place},", dict(zip(names, fields))


def json_lines(file: Path, text: Text) -> Iterator[tuple[str, dict[str, Any]]]:
    """Objects of a text of one a line, each with where it stands. Raises ``DataError``."""
    for number, line in enumerate(text.value.split("\n"), 1):
        where = f"{file}, line {number},"
        if line.strip():
            row = _parsed(where, line, "be one JSON object")
            if not isinstance(row, dict):
                raise DataError(f"data: {where} must be one JSON object, is {quoted(line)}. Mend or remove the line.")
            yield where, row


# CSV and TSV


def from_csv(file: Path, text: Text, suffix: str, asked: str | None) -> tuple[list[Cell], str]:
    """Cells of the text column, and its name. ``asked`` may be a number too: the column's place in a table whose first line is a row already.

    Raises ``DataError`` for a row of another length than the header, and for quotes that do not match.
    """
    with _long_fields():
        rows = iter(_table(file, text, suffix))
        first = next(rows, None)
        if first is None:
            return [], asked or ""
        names = [name.strip() for name in first[1]]
        column, place = asked or "", _place(asked, names)
        if place is not None:
            rows = chain([first], rows)
        else:
            column = column_of(str(file), names, asked)
            place = names.index(column)
        return [Cell(f"{file}, line {line},", row[place]) for line, row in _even(file, rows, len(names))], column


def _place(asked: str | None, names: Sequence[str]) -> int | None:
    """The place of a column that is asked for by its number."""
    if asked is None or asked in names or not (asked.isascii() and asked.isdigit()) or len(asked) > 6:
        return None
    return int(asked) - 1 if 1 <= int(asked) <= len(names) else None


def _even(file: Path, rows: Iterable[tuple[int, list[str]]], width: int) -> Iterator[tuple[int, list[str]]]:
    for line, row in rows:
        if len(row) != width:
            raise DataError(
                f"data: {file}, line {line}, must have {width} fields as the first line has, has {len(row)}. Mend or remove the line."
            )
        yield line, row


def _table(file: Path, text: Text, suffix: str) -> Iterable[tuple[int, list[str]]]:
    """Rows with the lines they begin on. Tabs may divide what is not quoted: where quotes do not match, but the rows are of one length then."""
    delimiter = _delimiter(file, text.value, suffix)
    if suffix != ".tsv":
        return _rows(file, text, delimiter)
    try:
        return list(_rows(file, text, delimiter))
    except DataError:
        bare = list(_rows(file, text, delimiter, csv.QUOTE_NONE))
        if len({len(row) for _, row in bare}) > 1:
            raise
        return bare


def _rows(file: Path, text: Text, delimiter: str, quoting: Any = csv.QUOTE_MINIMAL) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not empty, with the lines they begin on."""
    reader = csv.reader(io.StringIO(text.value, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    line = 1
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if text.cut and line > 1:  # the last row goes on where reading ended
                return
            raise DataError(f"data: {file}, line {line}, must be a row of a table, the reader says: {error}. Mend its quotes.") from error
        if row:
            yield line, row
        line = reader.line_num + 1


def _delimiter(file: Path, text: str, suffix: str) -> str:
    """The one of the usual delimiters that divides the first line into most fields."""
    head = Text(text[: text.find("\n") + 1] or text, cut=True)
    counts = {}
    for delimiter in _DELIMITERS[suffix]:
        try:
            counts[delimiter] = len(next(_rows(file, head, delimiter), (1, [""]))[1])
        except DataError:  # a name that goes on in the next line
            counts[delimiter] = head.value.count(delimiter) + 1
    return max(counts, key=lambda delimiter: counts[delimiter])


@contextmanager
def _long_fields() -> Iterator[None]:
    """Fields of any length inside."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


# JSON


def from_json_lines(file: Path, text: Text, asked: str | None) -> tuple[list[Cell], str]:
    """Cells of one JSON object a line; of each ``text``, else ``messages``, else the column that the first such object shows."""
    # Only "\n" ends a line: splitlines() would also cut at separators that JSON allows inside a string.
    lines = [(f"{file}, line {number},", line) for number, line in enumerate(text.value.split("\n"), 1) if line.strip()]
    return _cells(((where, _parsed(where, line, "be one JSON object")) for where, line in lines), asked)


def from_json(file: Path, text: Text, asked: str | None) -> tuple[list[Cell], str]:
    """Cells of a list of objects or of texts, which may stand in an object beside other things; else of JSON lines under another name."""
    try:
        body = json.loads(text.value)
    except (ValueError, RecursionError) as error:
        if text.value.lstrip().startswith("{") and "\n" in text.value.strip():
            return from_json_lines(file, text, asked)
        said = "it is longer than is read whole; write one object a line" if text.cut else f"the parser says: {_reason(error)}"
        raise DataError(f"data: {file} must be one JSON value, {said}. Mend the file, or leave it out.") from error
    rows = _listed(file, body, asked)
    return _cells(((f"{file}, row {number},", row) for number, row in enumerate(rows, 1)), asked)


def _listed(file: Path, body: Any, asked: str | None) -> list[Any]:
    """The rows: the value itself, or the only list of objects or texts in it."""
    if isinstance(body, dict) and not any(isinstance(value, list) for value in body.values()):
        return [body]
    lists = [body] if isinstance(body, list) else list(body.values()) if isinstance(body, dict) else []
    lists = [value for value in lists if isinstance(value, list) and value and all(isinstance(row, dict | str) for row in value)]
    if isinstance(body, dict) and isinstance(body.get("messages"), list):
        return [body]
    if isinstance(body, dict) and asked in body and isinstance(body[asked], list):
        lists = [body[asked]]
    if len(lists) != 1:
        raise DataError(f"data: {file} must hold one list of objects or texts, holds {len(lists) or 'none'}. Write one object a line.")
    return lists[0]


def _cells(rows: Iterable[tuple[str, Any]], asked: str | None) -> tuple[list[Cell], str]:
    found, column = [], asked or ""
    for where, row in rows:
        if isinstance(row, dict):
            column = column_of_object(where, row, asked, column)
            found.append(Cell(where, row[column]))
        elif isinstance(row, str) and asked is None:
            found.append(Cell(where, row))
        else:
            raise DataError(f"data: {where} must be an object with a string `text` or a list `messages`. Mend or remove the line.")
    return found, column


def column_of_object(where: str, row: dict[str, Any], asked: str | None, before: str) -> str:
    """The key of an object's text; that of the object ``before`` where it has it too."""
    if asked is None and "text" not in row:
        if "messages" in row:
            return "messages"
        if not row or (before not in ("", "text", "messages") and before not in row):
            wanted = f"`{before}`, as those before it" if row else "a string `text` or a list `messages`"
            raise DataError(f"data: {where} must be an object with {wanted}. Mend or remove the line.")
        if before in row:
            return before
    return column_of(where, list(row), asked, [name for name, value in row.items() if isinstance(value, str)])


def _parsed(where: str, text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"data: {where} must {what}, the parser says: {_reason(error)}. Mend or remove the line.") from error


def _reason(error: Exception) -> str:
    return getattr(error, "msg", quoted(error))


# Parquet


def from_parquet(file: Path, most: int, asked: str | None) -> tuple[list[Cell], str, bool]:
    """Cells of the text column up to ``most`` characters, its name, and whether there are more. Raises ``DataError``, also without pyarrow."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DataError(f"data: {file} is Parquet, which needs pyarrow, not installed here. Run: pip install 'modicum[parquet]'.") from None
    try:
        schema = parquet.read_schema(file)
        texts = [field.name for field in schema if pyarrow.types.is_string(field.type) or pyarrow.types.is_large_string(field.type)]
        column = column_of(str(file), schema.names, asked, texts)
        if column not in texts:
            raise DataError(f"data: {file}, column {column!r}, must hold text, holds {quoted(str(schema.field(column).type))}. "
                            "Name another with --text-column.")  # fmt: skip
        # Of a text that many rows share one copy is made, so that a small file stays small.
        with parquet.ParquetFile(file, read_dictionary=[column]) as table:
            return _batches(file, table, column, most)
    except DataError:
        raise
    except Exception as error:  # whatever the reader raises at a damaged file
        raise DataError(f"data: {file} must be a readable Parquet file, the reader says: {quoted(error)}. Fetch it again.") from error


def _batches(file: Path, table: Any, column: str, most: int) -> tuple[list[Cell], str, bool]:
    found: list[Cell] = []
    for batch in table.iter_batches(batch_size=_ROWS, columns=[column]):
        for value in batch.column(0):
            text = value.as_py()
            most -= len(text or "")
            if most < 0:
                return found, column, True
            found.append(Cell(f"{file}, row {len(found) + 1},", "" if text is None else text))
    return found, column, False
