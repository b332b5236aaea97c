"""Healing: what a compressed model keeps is trained until it answers as its original did, in the same bytes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import torch
from torch import nn

from modicum.core.errors import SettingError
from modicum.core.option import Option
from modicum.core.parametrization import Parametrization
from modicum.core.progress import Quiet
from modicum.core.unit import Unit
from modicum.data.splits import Batch
from modicum.forms import Dense, Form
from modicum.models.trainable import trainable
from modicum.restrict._healer import Healer
from modicum.train.loop import DivergedError, kept, single, train
from modicum.train.objectives import Objective
from modicum.train.settings import Loop
from modicum.train.trained import Trained

# Of steps that are relative, where none is asked for: between the best for values under a mask (3e-3) and for scales of two bits (1e-2). What is
# near its end already moves less than what learns anew, whose methods have rates of their own.
RATE = 5e-3


@dataclass(frozen=True)
class Healed:
    """What training gave: ``forms`` of units and ``vectors`` by parameter, as they are stored; ``event`` says why it ended early, if it did."""

    forms: Mapping[str, Form]
    vectors: Mapping[str, torch.Tensor]
    losses: list[float]
    trained: int
    seconds: float
    event: str = ""
    methods: Mapping[str, int] = field(default_factory=dict)


def healers(text: str) -> list[Parametrization]:
    """Methods by commas: ``norms, held rank=8``. Raises ``SettingError`` for one that is not trained, or changes what is stored."""
    found: list[Parametrization] = []
    for word in text.split(","):
        steps = Option.parse(word.strip(), trained=True).steps
        if len(steps) != 1 or not isinstance(steps[0], Parametrization):
            raise SettingError(f"heal_with: {word.strip()!r} must be one trained step, such as norms or held. Leave it out.")
        found.append(steps[0])
    return found


def chosen(
    units: Mapping[str, Unit],
    forms: Mapping[str, Form],
    methods: Sequence[Parametrization],
    own: Mapping[str, Parametrization] = MappingProxyType({}),
) -> dict[str, Parametrization]:
    """Which method trains what: a unit's own where it has one, healers the forms that they suit, the first of them each, and what is added to a
    base the vectors.
    """
    inside = [method for method in methods if isinstance(method, Healer)]
    beside = [method for method in methods if method.relative]
    found: dict[str, Parametrization] = {}
    method: Parametrization | None
    for name, unit in units.items():
        if name in own:
            method = own[name]
        elif name in forms:
            method = next((method for method in inside if method.suits(forms[name])), None)
        else:
            method = next(iter(beside), None) if unit.kind == "parameter" and len(unit.stored_shape) == 1 else None
        if method is not None:
            found[name] = method
    return found


def heal(
    student: nn.Module, forms: Mapping[str, Form], vectors: Mapping[str, torch.Tensor], rows: Sequence[Batch], objective: Objective, loop: Loop,
    methods: Sequence[Parametrization], *, own: Mapping[str, Parametrization] | None = None, keep: Path | None = None,
    progress: Quiet | None = None,
) -> Healed:  # fmt: skip
    """Train what ``methods`` may of a module that computes with ``forms`` and ``vectors``, the stored values of its vectors by parameter.

    Units that have a method of their ``own`` are trained by it: what it learns is laid beside their form, which stays.
    The module is as it was afterwards. Training that was killed goes on from ``keep`` with the same losses; at a loss that is no number it ends with
    what was kept, and an event. Raises ``SettingError`` where nothing of the model may be trained.
    """
    own = own or {}
    plan = chosen(trainable(student), forms, methods, own)
    plan = {name: method for name, method in plan.items() if name in forms or name in vectors}
    if not plan:
        told = ", ".join(map(str, methods))
        raise SettingError(f"heal: something that may be trained by {told} must be there, nothing is. Name other methods with --heal-with.")
    loop = replace(loop, rate=loop.rate or RATE)
    stands = {name: forms[name] if name in forms else Dense(vectors[name][None]) for name in plan}
    started, event = time.perf_counter(), ""
    with Trained(student, dict(plan), seed=loop.seed, total=loop.steps, forms=stands) as t:
        try:
            losses = train(student, t, single(rows), loop, objective=objective, keep=keep, progress=progress, training=False)
        except DivergedError as error:
            losses = [] if keep is None else kept(t, keep, loop)
            event = f"{error} Healing ended with what was kept at update {len(losses)}."
            if not losses:
                return Healed({}, {}, [], t.count, time.perf_counter() - started, event)
        seconds = time.perf_counter() - started
        made = {name: form for name, form in t.forms().items() if name in forms and name not in own}
        made |= {name: method.closed(forms[name], t.places[name].state) for name, method in own.items()}
        moved = {name: t.weight(name).detach()[0] for name in plan if name not in forms}
        counted: dict[str, int] = {}
        for place in t.places.values():
            counted[str(place.method)] = counted.get(str(place.method), 0) + sum(map(torch.Tensor.numel, place.state.trained.values()))
        return Healed(made, moved, losses, t.count, seconds, event, counted)
