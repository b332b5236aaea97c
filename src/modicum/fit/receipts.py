"""The receipt on disk: its format, and its reader."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modicum.core.errors import ModicumError, SettingError, quoted
from modicum.core.files import read_json

RECEIPT_FORMAT, RECEIPT_VERSION = "modicum-receipt", 1
FILE = "receipt.json"
_PARTS = ("model", "request", "data", "seed", "versions", "bytes", "coverage", "sites", "quality", "verification", "events", "stages")


def read_receipt(path: str | Path) -> dict[str, Any]:
    """Read a receipt that ``fit`` wrote. Raises ``SettingError`` for anything else."""
    try:
        body = read_json(path)
    except ValueError as error:
        raise SettingError(f"receipt {path}: must be a readable JSON file ({error}). Name a receipt.json that fit wrote.") from None
    if not isinstance(body, dict) or body.get("format") != RECEIPT_FORMAT:
        raise SettingError(f"receipt {path}: must be an object of format {RECEIPT_FORMAT}, is another. Name a receipt.json that fit wrote.")
    if body.get("version") != RECEIPT_VERSION:
        raise SettingError(
            f"receipt {path}: must be of version {RECEIPT_VERSION}, is {body.get('version')!r}. Use the modicum that wrote it."
        )
    if missing := [part for part in _PARTS if part not in body]:
        raise SettingError(f"receipt {path}: must hold all its parts, {', '.join(missing)} is missing. Run fit again.")
    if wrong := _misshapen(body):
        raise SettingError(f"receipt {path}: {wrong} must be as fit writes it, is not. Run fit again.")
    return body


@contextmanager
def as_written() -> Iterator[None]:
    """Inside, parts of receipts are read that nobody has checked: whatever values of another kind raise becomes a ``SettingError``."""
    try:
        yield
    except (ModicumError, OSError):
        raise
    except Exception as error:
        raise SettingError(f"receipt: its parts must be as fit writes them, are not ({quoted(error)}). Run fit again.") from error


def _misshapen(body: dict[str, Any]) -> str:
    """The first part of a receipt that a reader relies on and that is not what it should be."""
    expected = {("model", "name"): str, ("data", "source"): str, ("request", "target"): str, ("seed",): int}
    request = body["request"] if isinstance(body["request"], dict) else {}
    expected |= {("request", name): int for name in ("samples", "tokens", "micro_batch", "test_samples") if name in request}
    for path, kind in expected.items():
        value: Any = body
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        if not isinstance(value, kind) or isinstance(value, bool):
            return ".".join(path)
    return ""
