"""Which method trains which weight, what is computed beside, what moves when: a plan's patterns, matched to what a module has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from torch import nn

from modicum.core.aside import Aside
from modicum.core.errors import SettingError, near
from modicum.core.estimator import Estimator
from modicum.core.option import Option
from modicum.core.parametrization import Parametrization
from modicum.core.rules import matches
from modicum.core.schedule import Schedule
from modicum.core.unit import Unit
from modicum.models.structure import find_blocks
from modicum.models.trainable import trainable
from modicum.models.weights import Weights

_Kind = TypeVar("_Kind")

Plan = str | Option | Mapping[str, str | Option | Parametrization]
"""One option for all, or options by pattern of parameter names."""


@dataclass
class Planned:
    """What a plan means on a module: unit and method by name, schedules by unit, asides by place, and the estimator of all gradients, or None."""

    units: dict[str, tuple[Unit, Parametrization]] = field(default_factory=dict)
    schedules: dict[str, Schedule] = field(default_factory=dict)
    asides: list[tuple[str, Aside]] = field(default_factory=list)
    estimator: Estimator | None = None


def planned(module: nn.Module, plan: Plan) -> Planned:
    """What a plan says. One option for all means what its method ``means``: matrices in the blocks (all, where there are none, but the last
    layer's of a method that takes whole rows away, since they are the answers), or vectors.

    Raises ``SettingError`` for a pattern that nothing matches, or an option whose steps do not train together.
    """
    units, found = trainable(module), Planned()
    if isinstance(plan, str | Option):
        everywhere = Option.parse(plan, trained=True) if isinstance(plan, str) else plan
        _add(found, module, everywhere, _meant(module, everywhere, units), "*")
        return found
    for pattern, option in plan.items():
        exact = {pattern: units[pattern]} if pattern in units else {}
        met = exact or {name: unit for name, unit in units.items() if matches(pattern, name) or matches(pattern, unit.module)}
        _add(found, module, option, met, pattern, near(pattern, units))
    return found


def _meant(module: nn.Module, option: Option, units: dict[str, Unit]) -> dict[str, Unit]:
    """The units that one option for all trains. Raises ``SettingError`` where the model has none of them."""
    method = _only(option, Parametrization)
    if method is None:
        return units
    meant = {name: unit for name, unit in units.items() if method.means(unit)}
    if not meant:
        raise SettingError(
            f"plan: {str(option)!r} must find what it trains in this model, finds none. Choose another method, or name parameters."
        )
    inside = {name for block in find_blocks(module, Weights(module)).values() for name in block.parameters}
    found = {name: unit for name, unit in meant.items() if unit.parameter in inside or unit.shape[0] == 1}
    if not found and method.cuts_rows and len(meant) > 1:
        return dict(list(meant.items())[:-1])
    return found or meant


def _add(
    found: Planned, module: nn.Module, text: str | Option | Parametrization, units: dict[str, Unit], pattern: str, close: str = ""
) -> None:
    option = Option.parse(text, trained=True) if isinstance(text, str) else text if isinstance(text, Option) else Option((text,))
    method, schedule, estimator = _only(option, Parametrization), _only(option, Schedule), _only(option, Estimator)
    asides = [step for step in option.steps if isinstance(step, Aside)]
    others = [step for step in option.steps if not isinstance(step, Parametrization | Schedule | Estimator | Aside)]
    if others or not (method or asides):
        raise SettingError(
            f"plan: {str(option)!r} must be one trained step, such as 'lora rank=8', with a schedule or an estimator behind it at most. "
            "Compress first, then train over the result."
        )
    if method and not units:
        raise SettingError(f"plan: {pattern!r} must match a parameter, matches none. {close}")
    if method:
        found.units |= {name: (unit, method) for name, unit in units.items()}
    if schedule:
        found.schedules |= dict.fromkeys(units, schedule)
    for aside in asides:
        places = [name for name in aside.places(module) if matches(pattern, name)]
        if not places:
            raise SettingError(f"plan: {pattern!r} must match a place of {aside}, matches none. {near(pattern, aside.places(module))}")
        found.asides += [(name, aside) for name in places]
    if estimator and found.estimator not in (None, estimator):
        raise SettingError(f"plan: one estimator must serve all that is trained, {found.estimator} and {estimator} are named.")
    found.estimator = estimator or found.estimator


def _only(option: Option, kind: type[_Kind]) -> _Kind | None:
    steps = [step for step in option.steps if isinstance(step, kind)]
    if len(steps) > 1:
        raise SettingError(
            f"plan: {str(option)!r} must have one {kind.__name__.lower()} at most, has {len(steps)}. Give each pattern its own option."
        )
    return steps[0] if steps else None
