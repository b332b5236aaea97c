"""Rounds: pruning and healing in turns, each of which prunes more, until the last makes what the plan says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from modicum.core.errors import SettingError
from modicum.core.method import Change
from modicum.core.option import Option
from modicum.fit.assemble import Assembly
from modicum.fit.heal import healed
from modicum.fit.made import Made, changed
from modicum.fit.scene import Scene
from modicum.prune._family import Pruner
from modicum.sweep.spill import SpillPool
from modicum.work.meter import Meter


@dataclass(frozen=True)
class Begun:
    """What the rounds before the last came to: ``values`` of all parameters that changed, an account of each round, and events."""

    values: Mapping[str, torch.Tensor] = field(default_factory=dict)
    accounts: list[dict[str, Any]] = field(default_factory=list)
    events: list[str] = field(default_factory=list)


def gradual(option: Option, share: float) -> Option:
    """The pruning steps of an option, each at the share of its way that keeps the same part of what is left in every round; none of the others."""
    steps = [step for step in option.steps if isinstance(step, Pruner) and step.pattern is None]
    return Option(tuple(replace(step, keep=step.keep**share) for step in steps[:1]))


def begin(scene: Scene, options: Mapping[str, Option], folder: Path, pool: SpillPool, meter: Meter) -> Begun:
    """Do all rounds but the last. Raises ``SettingError`` where no option prunes by a share."""
    count, events, accounts = scene.request.rounds, list[str](), list[dict[str, Any]]()
    if not any(gradual(option, 1.0).steps for option in options.values()):
        raise SettingError(
            f"rounds {count}: must stand beside an option that prunes by a share, such as wanda keep=0.5; none does. Leave it out."
        )
    values: Mapping[str, torch.Tensor] = {}
    for number in range(1, count):
        place = folder / f"round-{number}"
        place.mkdir(exist_ok=True)
        some = {name: less for name, option in options.items() if (less := gradual(option, number / count)).steps}
        assembly = Assembly(changed(scene, values), scene.script, some, place)
        with meter.stage("assemble", len(scene.model.blocks)):
            tick = lambda _: meter.progress.step()
            forms = assembly.run(scene.data.calibration, seed=scene.request.seed, pool=pool, tick=tick)
        made, account = healed(Made(scene, Change(), forms, pool, some, values), place / "healing", meter)
        events += [f"round {number}: {event}" for event in (*assembly.events, *account.pop("events"))]
        accounts.append(account | {"options": sorted({str(option) for option in some.values()})})
        values = made.dense()
    return Begun(values, accounts, events)
