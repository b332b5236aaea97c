"""What other readers make of a file: llama.cpp, and Transformers' own, where they are installed and know the architecture."""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modicum.core.budget import readable
from modicum.core.errors import quoted
from modicum.data.splits import Batch
from modicum.export.gguf import running
from modicum.export.gguf.file import FILE
from modicum.models.quiet import hushed

# Tokens that llama.cpp is asked about, and the most that its answers may differ by on average: it rounds inputs to eight bits.
_TOKENS, _NEAR = 256, 2e-3
# Bytes of a process that has imported what it needs.
_PYTHON = 400_000_000
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


def run_by_llama_cpp(directory: Path, module: nn.Module, batch: Batch | None, room: int | None = None) -> tuple[dict[str, Any] | str, str]:
    """How llama.cpp's answers on a row of tokens differ from those of ``module``, which has the file's weights; an event where they are not near.

    Its process has as many threads as this one, and is not begun where it would take more than ``room`` bytes.
    """
    if not running.installed() or not isinstance(batch, Mapping) or "input_ids" not in batch:
        return "not tried, llama-cpp-python is not installed", ""
    ids = batch["input_ids"][:1, :_TOKENS]
    if room is not None and (needed := _needed(directory, module, ids.shape[1])) > room:
        said = f"it needs {readable(needed)} beside this process, --ram leaves {readable(room)}"
        return f"not tried, {said}", f"llama.cpp was not asked: {said}"
    with torch.no_grad():
        ours = _logits(module(input_ids=ids))[0].double().log_softmax(-1)
    try:
        theirs = torch.from_numpy(running.logits(directory / FILE, ids[0].tolist(), torch.get_num_threads())).double().log_softmax(-1)
    except (RuntimeError, ValueError, OSError, subprocess.TimeoutExpired) as error:
        said = quoted(error)
        return f"fails at it ({said})", f"llama.cpp, as it is installed here, fails at the file ({said})"
    found = {
        "tokens": len(ours), "mean KL per token": float((ours.exp() * (ours - theirs)).sum(-1).mean()),
        "same best token": float((ours.argmax(-1) == theirs.argmax(-1)).double().mean()),
    }  # fmt: skip
    lost = found["mean KL per token"]
    return (
        found,
        "" if lost <= _NEAR else f"llama.cpp answers otherwise than the dequantized weights, by {lost:.2g} nats per token on average",
    )


def _needed(directory: Path, module: nn.Module, tokens: int) -> int:
    """Bytes of a process that runs a file on so many tokens: the file, Python with its libraries, and what is computed, logits in two places."""
    config: Any = module.config
    rows = 2 * config.vocab_size + 8 * (config.hidden_size + (getattr(config, "intermediate_size", None) or 0))
    return (directory / FILE).stat().st_size + _PYTHON + 4 * tokens * rows
