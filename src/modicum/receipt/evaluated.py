"""What `modicum eval` wrote of anybody's model, as a result beside others."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modicum.core.errors import SettingError
from modicum.core.files import read_json
from modicum.fit.compared import difference
from modicum.receipt.evaluate import EVALUATION_FORMAT, EVALUATION_VERSION

_WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt")


def beside(path: Path, receipt: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The model that was judged, as ``compare`` has results, and how it differs in quality from the result of ``receipt``.

    Raises ``SettingError`` for a file that ``modicum eval --json`` did not write, or of a model that was judged against another original.
    """
    found = _read(path)
    original, reference = receipt["model"]["name"], found.get("reference")
    if reference is None:
        raise SettingError(f"{path}: must be judged against {original}, is against nothing. Pass --reference {original} to modicum eval.")
    if reference != original and os.path.realpath(reference) != os.path.realpath(original):
        raise SettingError(f"{path}: must be judged against {original}, is against {reference}. Compare results of the same model.")
    size = _bytes(Path(found["model"]))
    result = {
        "directory": found["model"], "target": "modicum eval", "budget": None, "bytes": size,
        "bits_per_weight": None if size is None else 8 * size / receipt["model"]["parameters"], "quality": found["quality"], "kinds": {},
        "tasks": found.get("tasks", []),
    }  # fmt: skip
    judged = {"quality": found["quality"], "data": {"hashes": {"test": found["data"]["hash"]}}}
    return result, {"result": found["model"], **difference(receipt, judged)}


def _read(path: Path) -> dict[str, Any]:
    try:
        body = read_json(path)
    except ValueError as error:
        raise SettingError(
            f"{path}: must be a readable JSON file ({error}). Name a folder that fit wrote, or what modicum eval wrote."
        ) from None
    if not isinstance(body, dict) or body.get("format") != EVALUATION_FORMAT or body.get("version") != EVALUATION_VERSION:
        raise SettingError(
            f"{path}: must be what modicum eval --json wrote, is another file. Name a folder that fit wrote, or such a file."
        )
    return body


def _bytes(directory: Path) -> int | None:
    """Bytes of the weight files; None where they are not here."""
    sizes = [path.stat().st_size for path in directory.iterdir() if path.name.endswith(_WEIGHTS)] if directory.is_dir() else []
    return sum(sizes) or None
