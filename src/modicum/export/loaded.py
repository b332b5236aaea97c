"""A directory as users of Transformers load it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from torch import nn

from modicum.core.errors import ModelError, quoted
from modicum.models.quiet import hushed


def loaded(cls: Any, directory: Path) -> nn.Module:
    """What plain ``from_pretrained`` of a class gives. Raises ``ModelError`` where it fails, or does not take the files as they are."""
    try:
        with hushed():
            module, report = cls.from_pretrained(directory, dtype="auto", output_loading_info=True)
    except Exception as error:  # whatever a loader raises
        raise ModelError(f"{directory}: Transformers' own loader fails at these files ({quoted(error)}). Pass --target modicum.") from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if report.get(kind):
            raise ModelError(f"{directory}: Transformers must load it whole, reports {kind} such as {sorted(map(str, report[kind]))[:2]}.")
    return _as_swept(module)


def dequantized(cls: Any, directory: Path) -> nn.Module:
    """What it gives where it decodes weights while it loads them, whatever that is."""
    from transformers import CompressedTensorsConfig

    with hushed(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the directory has a config of its own, which is what is wanted
        return _as_swept(cls.from_pretrained(directory, dtype="auto", quantization_config=CompressedTensorsConfig(dequantize=True)))


def _as_swept(module: nn.Module) -> nn.Module:
    """In the arithmetic of the sweep: what remains to differ is the weights."""
    if callable(choose := getattr(module, "set_experts_implementation", None)):
        choose("eager")
    return module.eval()
