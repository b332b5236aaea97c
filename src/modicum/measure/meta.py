"""The first page of a measurement on disk: what it is of, and with which settings it was taken."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modicum.core.errors import SettingError
from modicum.core.files import read_json

FORMAT, VERSION = "modicum-measurement", 1
FILE = "measurement.json"
_PARTS = {"model", "targets", "menu", "settings", "data", "stages", "hash"}
# What a measurement decides for every fit from it.
DECIDED = (
    "data",
    "text_column",
    "samples",
    "tokens",
    "micro_batch",
    "test_samples",
    "seed",
    "harm",
    "activations",
    "activation_scale",
    "rotate",
    "importance",
    "starved",
    "smooth",
    "gradient_samples",
    "curvature",
    "group",
    "output",
    "classes",
)


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


def require_decided(directory: Path, said: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise ``SettingError`` where a setting that a measurement decides is ``given`` otherwise than its own settings ``said``."""
    for name in DECIDED:
        if given.get(name) is not None and given[name] != said.get(name):
            was = "left out" if said.get(name) is None else said[name]
            raise SettingError(f"{name}: was {was} when {directory} was measured, cannot be {given[name]} now. Measure again.")
