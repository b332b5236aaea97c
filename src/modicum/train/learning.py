"""One model trained under one method: restricted weights beside dense ones, updates, and what came out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modicum.core.parametrization import Step
from modicum.core.progress import Quiet
from modicum.core.unit import Unit
from modicum.data.splits import Batch
from modicum.forms import Form
from modicum.models.trainable import trainable
from modicum.restrict._family import Restriction
from modicum.sweep.work import Work
from modicum.train.accounts import narrowed
from modicum.train.finding import planned
from modicum.train.loop import evaluate, single
from modicum.train.loop import train as updated
from modicum.train.objectives import Objective
from modicum.train.scoring import scored_on
from modicum.train.settings import Loop
from modicum.train.trained import Trained
from modicum.train.written import filled

DENSE = "dense"
# Sequences that methods which choose before training look at, in updates' worth.
_LOOKS = 4


@dataclass(frozen=True)
class Learnt:
    """What training gave: forms of the restricted weights by unit, losses of updates, and losses of each test row under the trained weights."""

    method: str
    forms: dict[str, Form]
    losses: list[float]
    test: list[tuple[float, int]]
    trained: int


def learn(
    module: nn.Module, method: str, rows: Sequence[Batch], test: Sequence[Batch], loop: Loop, *, objective: Objective,
    keep: Path | None = None, progress: Quiet | None = None,
) -> Learnt:  # fmt: skip
    """Train a module from where it is; it holds the trained weights afterwards. With ``keep``, a folder, it goes on where it was."""
    units, train = trainable(module), single(rows)
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
    with Trained(module, plan_of(module, method), seed=loop.seed, total=loop.steps, scratch=True) as t:
        scored_on(module, t, train[: _LOOKS * loop.batch], batch=loop.together or loop.batch, objective=objective, seed=loop.seed)
        losses = updated(module, t, train, loop, objective=objective, keep=keep, progress=progress)
        found = evaluate(module, single(test), objective)
        weights = {name: t.weight(name).detach() for name in t.places}
        restricted = {name: form for name, form in t.forms().items() if str(t.places[name].method) != DENSE}
        count = t.count
    filled(module, units, weights)
    return Learnt(method, {name: narrowed(form, units[name].dtype) for name, form in restricted.items()}, losses, found, count)


def plan_of(module: nn.Module, method: str) -> dict[str, str]:
    """A plan that trains every weight: those that the method is meant for under it, the others dense."""
    chosen = planned(module, method).units
    asked = {name for name, unit in trainable(module).items() if module.get_parameter(unit.parameter).requires_grad}
    return dict.fromkeys(sorted(asked - chosen.keys()), DENSE) | dict.fromkeys(chosen, method)


def operations(method: Restriction, units: Sequence[Unit], work: Work | None, loop: Loop) -> dict[str, Any] | None:
    """Multiply-adds of a training: forward once, backward twice, for weights as dense, and as the method multiplies with
    entries that are there.

    On steps that watch gradients those of whole weights are made. None where the module's own work is not known.
    """
    if work is None:
        return None
    mine = {unit.name: (unit.shape, work.units.get(unit.name, 0)) for unit in units}
    rest, total = 3 * (work.whole - sum(whole for _, whole in mine.values())), 0.0
    for number in range(loop.steps):
        step, watched = Step(number, loop.steps), method.watches(Step(number + 1, loop.steps))
        shares = [(whole, method.products(shape, step)) for shape, whole in mine.values()]
        total += rest + sum(whole * (3 * share + max(0.0, 1 - share) * watched) for whole, share in shares)
    total += method.looks * _LOOKS * 3 * work.whole
    return {"dense": 3 * work.whole * loop.steps * loop.batch, "effective": round(total * loop.batch)}


def last(losses: Sequence[float], count: int = 20) -> float:
    """Mean loss of the last updates."""
    return float(torch.tensor(losses[-count:], dtype=torch.float64).mean())
