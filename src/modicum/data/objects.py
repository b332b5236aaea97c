"""Files of JSON objects: one a line, or all in one list, whatever the file is called."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modicum.core.errors import DataError, quoted
from modicum.data.files import read_text
from modicum.data.tables import json_lines


def objects(path: Path, who: str, *, texts: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Objects of a file, each with where it stands; where ``texts`` names a key, strings of a list stand under it.

    Raises ``DataError``, which begins with ``who`` asks, for what is no such file, and for one that holds none.
    """
    text, count = read_text(path), 0
    if text.cut:
        raise DataError(f"{who}: {path} is longer than is read at once. Divide it.")
    found = _listed(path, text.value, who, texts) if text.value.lstrip().startswith("[") else json_lines(path, text)
    for where, row in found:
        count += 1
        yield where.rstrip(","), row
    if not count:
        raise DataError(f"{who}: {path} must hold {'facts' if who == 'facts' else 'rows'}, holds none. Write one JSON object a line.")


def _listed(path: Path, text: str, who: str, texts: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{who}: {path} must be JSON lines or one JSON list, the parser says: {quoted(error)}. Mend the file.") from None
    for number, row in enumerate(body, 1):
        if texts and isinstance(row, str):
            row = {texts: row}
        if not isinstance(row, dict):
            raise DataError(f"{who}: {path}, number {number}, must be an object, is {quoted(json.dumps(row), 60)}. Mend or remove it.")
        yield f"{path}, number {number}", row
