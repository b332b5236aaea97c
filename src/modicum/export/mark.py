"""What a container's ``config.json`` says of it, so that no loader takes it for something else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NAME = "modicum"
# Transformers passes over a method that it does not know, and would fill the model with random numbers. What must be the name of a weight file
# and is none it refuses, and quotes: so this sentence is what a loader without modicum says.
_SENTENCE = "this directory is a modicum container, import modicum first"
_PLACE = "transformers_weights"


def mark(directory: Path, format: Mapping[str, Any]) -> None:
    """Make a container's ``config.json`` name the format, in every part that a loader may take for the whole."""
    path = directory / "config.json"
    body = json.loads(path.read_text(encoding="utf-8"))
    body["quantization_config"] = {"quant_method": NAME, **format}
    for part in [body, *(value for value in body.values() if isinstance(value, dict) and "model_type" in value)]:
        part[_PLACE] = _SENTENCE
    path.write_text(json.dumps(body, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def unmarked(config: Any) -> Any:
    """A config without what ``mark`` put there; those of other formats stay as they are."""
    for part in [config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", {}))]:
        if getattr(part, _PLACE, None) == _SENTENCE:
            delattr(part, _PLACE)
    given = getattr(config, "quantization_config", None)
    method = given.get("quant_method") if isinstance(given, dict) else getattr(given, "quant_method", None)
    if method == NAME:
        del config.quantization_config
    return config
