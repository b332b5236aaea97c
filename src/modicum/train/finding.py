"""Which method trains which weight: a plan's patterns, matched to what a module has."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from modicum.core.errors import SettingError, near
from modicum.core.option import Option
from modicum.core.parametrization import Parametrization
from modicum.core.rules import matches
from modicum.core.unit import Unit
from modicum.models.structure import find_blocks
from modicum.models.trainable import trainable
from modicum.models.weights import Weights

# Kinds that a plan of one option for all means; the rest is asked for by name.
_ORDINARY = {"linear", "conv1d", "convolution", "transposed convolution", "expert", "recurrent", "packed"}


def planned(module: nn.Module, plan: str | Option | Mapping[str, str | Option]) -> dict[str, tuple[Unit, Parametrization]]:
    """Unit and method by name. One option for all means what lies in the blocks (everything, where there are none) but tables and vectors.

    Raises ``SettingError`` for a pattern that nothing matches, or an option that is not one trained step.
    """
    units = trainable(module)
    if isinstance(plan, str | Option):
        method, inside = _method(plan), {name for block in find_blocks(module, Weights(module)).values() for name in block.parameters}
        ordinary = {name: unit for name, unit in units.items() if unit.kind in _ORDINARY and unit.shape[0] > 1}
        chosen = {name: unit for name, unit in ordinary.items() if unit.parameter in inside} or ordinary
        return {name: (unit, method) for name, unit in chosen.items()}
    found: dict[str, tuple[Unit, Parametrization]] = {}
    for pattern, option in plan.items():
        method = _method(option)
        met = {name for name in units if matches(pattern, name) or matches(pattern, units[name].module)}
        if not met:
            raise SettingError(f"plan: {pattern!r} must match a parameter, matches none. {near(pattern, units)}")
        found |= {name: (units[name], method) for name in units if name in met}
    return found


def _method(option: str | Option) -> Parametrization:
    option = Option.parse(option, trained=True) if isinstance(option, str) else option
    if len(option.steps) != 1 or not isinstance(option.steps[0], Parametrization):
        raise SettingError(
            f"plan: {str(option)!r} must be one trained step, such as 'lora rank=8'. Compress first, then train over the result."
        )
    return option.steps[0]
