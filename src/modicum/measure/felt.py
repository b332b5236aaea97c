"""How much the output feels each row of a weight, as the steps of rows that suit it: taken once, and the same in every sweep of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from modicum.core.option import Option
from modicum.measure.subject import Subject
from modicum.models.model import Model
from modicum.numerics.coding import raised_by
from modicum.sweep import Sensitivity
from modicum.table.harm import looked_up_alone


def wanted(subject: Subject, options: Iterable[Option]) -> bool:
    """Whether an option asks for it, of a model with blocks, and gradients may be taken."""
    return bool(subject.model.blocks) and subject.settings.harm != "error" and any(option.feels for option in options)


def raised(model: Model, sensitivities: Mapping[str, Sensitivity]) -> dict[str, torch.Tensor]:
    """Exponents of steps by unit, of those whose rows' outputs are felt."""
    found = {name: felt.gradient for name, felt in sensitivities.items() if felt.weight is None}
    # Of a head each row is an output's own: what makes it unlikely must not be lost.
    units = {name: unit for name, unit in model.units.items() if unit.parameter not in model.trunk and not looked_up_alone(unit)}
    rows = {name: value for name, value in found.items() if name in units and value.shape == units[name].shape[:1] and bool(value.any())}
    return {name: raised_by(value) for name, value in rows.items()}


def told(found: Mapping[str, torch.Tensor]) -> dict[str, list[int]]:
    """JSON value of exponents."""
    return {name: value.tolist() for name, value in found.items()}


def read(value: Mapping[str, list[int]]) -> dict[str, torch.Tensor]:
    """Inverse of ``told``."""
    return {name: torch.tensor(exponents, dtype=torch.int16) for name, exponents in value.items()}
