"""What was asked of a run, as the file beside its receipt says it: no more than what differs from the defaults, in the words of the command line."""

from __future__ import annotations

from dataclasses import fields
from decimal import Decimal
from pathlib import Path
from typing import Any

from modicum.core.budget import Budget
from modicum.core.config import FROM_PYTHON
from modicum.measure.settings import Settings

# Said before the others; where it is written, and what whoever runs it again must say anew.
_UNSAID = {"budget", "out", "overwrite", "dry_run", "allow_pickle", "trust_remote_code"}
_PATHS = str | Path
_SIZE = lambda value: f"{value}B"
_SPELT = {
    "size": _SIZE, "memory": _SIZE, "ram": _SIZE, "params": lambda value: _share(value), "loss": lambda value: _share(value),
    "macs": lambda value: _decimal(value),  # a share, or their number
    "speed": lambda value: f"{_decimal(value)}x", "latency": lambda value: f"{_decimal(value)}s",
}  # fmt: skip


def asked(settings: Settings, *, model: Any, data: Any, plan: Any = None, measured: Any = None) -> dict[str, Any]:
    """Settings as a file holds them; ``model``, ``data``, ``plan`` and ``measured`` as the caller gave them.

    What came from Python alone, no file can hold: it is named, so that nothing else stands in its place when the file is read.
    """
    folder = getattr(measured, "directory", measured)
    sources = {"model": model, "from": folder, "data": data, "plan": plan}
    found: dict[str, Any] = {name: str(value) for name, value in sources.items() if isinstance(value, _PATHS)}
    missing = [name for name in ("data", "plan") if name not in found and sources[name] is not None]
    if isinstance(budget := getattr(settings, "budget", None), Budget):
        found |= {part.name: _spelt(part.name, got) for part in fields(budget) if (got := getattr(budget, part.name)) is not None}
    for field in fields(settings):
        value = getattr(settings, field.name)
        if callable(value):
            missing.append(field.name)
        elif value != field.default and field.name not in {*_UNSAID, *sources}:
            found[field.name] = _spelt(field.name, value)
    return found | ({FROM_PYTHON: missing} if missing else {})


def _spelt(name: str, value: Any) -> Any:
    if name in _SPELT:
        return _SPELT[name](value)
    if isinstance(value, tuple):
        return [str(item) for item in value]
    return value if isinstance(value, bool | int | float | str) else str(value)


def _decimal(value: float) -> str:
    """A number without an exponent, exactly."""
    return format(Decimal(repr(value)), "f")


def _share(value: float) -> str:
    return _decimal(value) if value < 1 else f"{format(Decimal(repr(value)) * 100, 'f')}%"
