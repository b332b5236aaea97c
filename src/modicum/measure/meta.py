"""The first page of a measurement on disk: what it is of, and with which settings it was taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modicum.core.errors import SettingError
from modicum.core.files import read_json

FORMAT, VERSION = "modicum-measurement", 1
FILE = "measurement.json"
_PARTS = {"model", "targets", "menu", "settings", "data", "stages", "hash"}


def read_meta(directory: Path) -> dict[str, Any]:
    """The page as JSON. Raises ``ValueError`` or ``OSError`` for anything else."""
    meta = read_json(directory / FILE)
    if not isinstance(meta, dict) or meta.get("format") != FORMAT or meta.get("version") != VERSION:
        raise ValueError(f"not of format {FORMAT}, version {VERSION}")
    if missing := _PARTS - meta.keys():
        raise ValueError(f"{min(missing)!r} is missing")
    return meta


def no_measurement(directory: Path, why: object) -> SettingError:
    """What is said of a folder that holds none."""
    return SettingError(f"measurement {directory}: must be a folder that measure wrote ({why}). Measure again.")


def require_measurement(directory: Path) -> dict[str, Any]:
    """The page. Raises ``SettingError`` where there is none that can be read."""
    try:
        return read_meta(directory)
    except (OSError, ValueError, RecursionError) as error:
        raise no_measurement(directory, error) from None
