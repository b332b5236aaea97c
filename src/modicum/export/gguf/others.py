"""What other readers make of a file: Transformers' own, where it knows the architecture."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modicum.core.errors import quoted
from modicum.data.splits import Batch
from modicum.export.gguf.file import FILE
from modicum.models.quiet import hushed

# The most that outputs of equal weights may differ by, of the largest.
_SAME = 1e-3


def read_by_transformers(directory: Path, module: nn.Module, batch: Batch | None) -> tuple[str, str]:
    """What Transformers' reader makes of a file whose weights ``module`` has, in a few words; and an event where that is another model.

    It drops settings that it has no name for, and then computes something else without a word.
    """
    if importlib.util.find_spec("accelerate") is None:
        return "not tried, its reader of these files needs accelerate", ""
    try:
        with hushed():
            other = type(module).from_pretrained(directory, gguf_file=FILE, dtype=next(module.parameters()).dtype)  # type: ignore[attr-defined]
            differs = _difference(module, other.eval(), batch)
    except Exception as error:  # whatever a loader raises
        said = quoted(error).splitlines()[0]
        return (
            f"cannot read it ({said})",
            f"Transformers' own reader of GGUF files cannot read this one ({said}); modicum.load and llama.cpp can",
        )
    if not differs:
        return "equal", ""
    return differs, f"Transformers' own reader of GGUF files makes another model of this one ({differs}): use modicum.load or llama.cpp"


def _difference(module: nn.Module, other: nn.Module, batch: Batch | None) -> str:
    """How another module differs from one, in a few words; nothing where it does not."""
    there = dict(other.named_parameters(remove_duplicate=False))
    for name, value in module.named_parameters(remove_duplicate=False):
        if name not in there or not torch.equal(value, there[name]):
            return f"{name} is not what the file holds"
    if not isinstance(batch, Mapping):
        return ""
    with torch.no_grad():
        ours, theirs = (_logits(each(**batch)) for each in (module, other))
    gap = float((ours - theirs).abs().max() / ours.abs().max())
    return "" if gap <= _SAME else f"equal weights, outputs that differ by {gap:.0%} of the largest"


def _logits(output: Any) -> torch.Tensor:
    return output.logits.float()
