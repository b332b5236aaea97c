"""What a small model is held against: the dense model, and dense models that are as small, at equal updates and at equal operations."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from modicum.core.errors import ModicumError
from modicum.core.progress import Quiet
from modicum.models.open import skeleton
from modicum.train.learning import DENSE, Learnt, learn
from modicum.train.settings import Loop
from modicum.train.subject import Subject, built

_INNER = ("intermediate_size", "n_inner", "ffn_dim", "d_ff", "ffn_hidden_size")


def dense(subject: Subject, loop: Loop, folder: Path, progress: Quiet | None = None) -> Learnt:
    """The model itself, trained whole."""
    return _learnt(subject, subject.fresh(), loop, folder / "dense", progress)


def small(
    subject: Subject, most: int, work: float, loop: Loop, folder: Path, progress: Quiet | None = None
) -> tuple[dict[str, Learnt], dict[str, Any], str]:
    """Dense models of at most ``most`` parameters: with as many updates, and with the operations of the dense one's training.

    What they are, and why there are none where that is so. ``work`` is how much of the model's operations lies in its weights.
    """
    if subject.config is None:
        return {}, {}, "nobody but the caller knows a smaller module of the same kind"
    cls, whole = type(subject.fresh()), _count(subject.fresh())
    found = next(((config, count) for config, count in _narrower(subject, cls) if count <= most), None)
    if found is None:
        return {}, {}, f"its config gives no model of at most {most:,} parameters"
    config, count = found
    longer = replace(loop, steps=max(loop.steps, round(loop.steps / (work * count / whole + 1 - work))))
    make = lambda: built(cls, config, subject.name, loop.seed)
    learnt = {
        "small, equal updates": _learnt(subject, make(), loop, folder / "small", progress),
        "small, equal operations": _learnt(subject, make(), longer, folder / "longer", progress),
    }
    return learnt, {"parameters": count, "hidden size": config.hidden_size, "updates": longer.steps}, ""


def _learnt(subject: Subject, module: nn.Module, loop: Loop, folder: Path, progress: Quiet | None) -> Learnt:
    splits = subject.splits
    return learn(module, DENSE, splits.calibration, splits.test, loop, objective=subject.objective, keep=folder, progress=progress)


def _narrower(subject: Subject, cls: Any) -> Iterator[tuple[Any, int]]:
    """Configs of the same depth and heads with their parameters, from the widest to the narrowest."""
    config = subject.config
    heads, width = getattr(config, "num_attention_heads", 1), config.hidden_size
    for hidden in range(width - 2 * heads, 0, -2 * heads):
        made = copy.deepcopy(config)
        made.hidden_size = hidden
        for name in _INNER:
            if isinstance(value := getattr(made, name, None), int):
                setattr(made, name, max(8, value * hidden // width // 8 * 8))
        if getattr(made, "head_dim", None):
            made.head_dim = max(2, config.head_dim * hidden // width // 2 * 2)
        with suppress(ModicumError):
            yield made, _count(skeleton(cls, copy.deepcopy(made)))


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
