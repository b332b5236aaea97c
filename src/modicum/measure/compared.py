"""Whether a checkpoint was opened as its users load it: compared with plain ``from_pretrained`` before anything is done with it."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from modicum.core.errors import ModelError, quoted
from modicum.core.memory import own_memory
from modicum.data.splits import Batch, Splits, call
from modicum.models.dequantized.view import Dequantized
from modicum.models.model import Model
from modicum.models.open import apart
from modicum.models.quiet import hushed
from modicum.models.settled import settle
from modicum.models.weights import CheckpointWeights, Weights
from modicum.sweep import Script

# Bytes of weights up to which a second copy is loaded for the comparison.
_MOST = 2_000_000_000
# Weights and code are the same, so outputs differ by the order of sums alone: share of the largest.
_ROUNDING = 0.02
# The same weights in the same kernels.
_SAME = 1e-3
_known: dict[str, str] = {}


def held_against_plain(model: Model, script: Script, data: Splits, ram: int | None) -> list[str]:
    """Note on the model how it compares with the one that Transformers loads; an event where that could not be told. Raises as ``compared``."""
    model.opened = compared(model.stored, script.example(data.calibration[0]), ram)
    return [f"opening: {model.opened}"] if UNCOMPARED in model.opened else []


def compared(model: Model, batch: Batch, ram: int | None) -> str:
    """Say how the opened model compares with the one that Transformers loads, where a quarter of the memory (of ``ram``) holds it twice.

    Every weight must be equal to the bit, and the outputs of ``batch`` equal but for rounding. Raises ``ModelError`` where one differs. A model is
    compared once in a process.
    """
    if not model.weights.lazy or model.directory is None or model.weights.device.type != "cpu":
        return ""
    if isinstance(model.weights, CheckpointWeights) and model.weights.shards.source != model.directory:
        return "names and shapes as its file's architecture has them, which Transformers reads in its own way"
    key = model.hash()
    if key not in _known:
        room = (ram - own_memory()) if ram is not None else os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        fits = model.dense_bytes <= _MOST and 4 * model.dense_bytes <= room
        _known[key] = _against_plain(model, batch) if fits else _TOO_LARGE
    return _known[key]


def settled_alike(source: nn.Module, model: Model, batch: Batch) -> bool:
    """Whether the model, in which effective weights stand for what computed them, gives what the caller's module does."""
    try:
        theirs = _outputs(apart(source), batch)
    except Exception:  # the rehearsal tells of a forward that fails
        return True
    try:
        mine = _mine(model, batch)
    except Exception:  # a forward that looks for what computed them
        return False
    return len(mine) == len(theirs) and all(_gap(one, other) <= _SAME for one, other in zip(mine, theirs))


# In what is said where a comparison failed.
UNCOMPARED = "not compared"
_TOO_LARGE = "names, shapes and dtypes as Transformers maps them; too large to be loaded a second time and compared by value"


def _against_plain(model: Model, batch: Batch) -> str:
    try:
        with hushed(), torch.random.fork_rng():
            plain = type(model.module).from_pretrained(model.directory, dtype="auto", use_safetensors=True)  # type: ignore[attr-defined]
    except Exception as error:  # whatever a loader raises
        return f"{UNCOMPARED}: from_pretrained does not load it here ({quoted(error)})"
    if isinstance(model.weights, CheckpointWeights) and isinstance(model.weights.shards, Dequantized):
        return _against_decoded(model, plain, batch)
    if model.settled.computed:
        settle(plain)
    count = _compare_weights(model, plain)
    try:
        theirs = _outputs(plain, batch)
        mine = _mine(model, batch)
    except Exception as error:  # a model's own forward on inputs that may not suit it
        return f"compared with from_pretrained: {count} weights equal; outputs {UNCOMPARED} ({quoted(error)})"
    gap = max((_gap(one, other) for one, other in zip(mine, theirs)), default=0.0)
    if len(mine) != len(theirs) or not gap <= _ROUNDING:
        raise ModelError(
            f"{model.name}: must give what from_pretrained's model gives, differs by {gap:.2g} of the largest{_buffers(model.module, plain)}. "
            "Report this."
        )
    return f"compared with from_pretrained: {count} weights equal, outputs differ by at most {gap:.2g} of the largest"


def _against_decoded(model: Model, plain: nn.Module, batch: Batch) -> str:
    """What is decoded here with what a loader decodes itself, which is not always right: its weights are packed until it has run."""
    try:
        theirs, mine = _outputs(plain, batch), _mine(model, batch)
        gap = max((_gap(one, other) for one, other in zip(mine, theirs)), default=float("inf"))
    except Exception as error:  # kernels that are not there, for instance
        return f"{UNCOMPARED}: from_pretrained's model does not run here ({quoted(error)})"
    if not gap <= _ROUNDING:
        return f"{UNCOMPARED}: from_pretrained makes another model of the same quantized weights, whose outputs differ by {gap:.2g} of the largest"
    return f"compared with from_pretrained, which decodes by itself: outputs differ by at most {gap:.2g} of the largest"


def _compare_weights(model: Model, plain: nn.Module) -> int:
    """Every weight of the one with that of the other; their number. Raises ``ModelError`` for the first that differs."""
    theirs = Weights(plain)
    for first, names in theirs.names.items():
        mine = {model.weights.first.get(name, "") for name in names}
        value = theirs.held(first)
        for name in mine:
            if not name:
                raise ModelError(f"{model.name}: {first} must be a weight of the opened model too, is none. Report this.")
            held = model.weights.read(name)
            if held.dtype != value.dtype or not torch.equal(held, value):
                raise ModelError(
                    f"{model.name}: {name} must be what from_pretrained loads, differs ({str(held.dtype)[6:]} {tuple(held.shape)} for "
                    f"{str(value.dtype)[6:]} {tuple(value.shape)}). Check the checkpoint."
                )
    return len(theirs.names)


def _mine(model: Model, batch: Batch) -> list[torch.Tensor]:
    try:
        model.weights.load(model.weights.names)
        return _outputs(model.module, batch)
    finally:
        model.weights.release(model.weights.names)


@torch.no_grad()
def _outputs(module: nn.Module, batch: Batch) -> list[torch.Tensor]:
    """Floating tensors of the outputs, drawn alike where a forward draws."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found: Any = call(module, batch)
    return [leaf.float() for leaf in tree_leaves(dict(found) if isinstance(found, dict) else found) if _floating(leaf)]


def _floating(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and leaf.numel() > 0


def _gap(one: torch.Tensor, other: torch.Tensor) -> float:
    if one.shape != other.shape:
        return float("inf")
    same = torch.isclose(one, other, rtol=0, atol=0, equal_nan=True)
    largest = other[other.isfinite()].abs().max() if other.isfinite().any() else torch.tensor(1.0)
    return float((one - other)[~same].abs().max() / largest.clamp_min(1e-30)) if not bool(same.all()) else 0.0


def _buffers(module: nn.Module, plain: nn.Module) -> str:
    """Names of the buffers that differ, which explain outputs that do."""
    theirs = dict(plain.named_buffers())
    other = [name for name, value in module.named_buffers() if name in theirs and not torch.equal(value, theirs[name].to(value.dtype))]
    return f" ({', '.join(other[:3])} differ)" if other else ""
