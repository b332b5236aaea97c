"""How much the output feels the rows of a weight and what a table gives: taken once, and the same in every sweep of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from modicum.core.finite import finite
from modicum.core.method import Need
from modicum.core.option import Option
from modicum.measure.subject import Subject
from modicum.models.model import Model
from modicum.numerics.exponents import LEAST, raised_by
from modicum.sweep import Script, Sensitivity
from modicum.table.harm import looked_up_alone

# The rows of a head are felt in themselves, not through what comes after: what is known of them is surer.
HEAD_LEAST = 1e-4


def wanted(subject: Subject, options: Iterable[Option]) -> bool:
    """Whether an option asks for it, and gradients may be taken."""
    return subject.takes_gradients and any(option.feels for option in options)


def together(subject: Subject, options: Iterable[Option]) -> bool:
    """Whether an option asks how the output feels rows together, and gradients may be taken."""
    return subject.takes_gradients and any(Need.FELT in option.needs for option in options)


def widest(subject: Subject) -> int:
    """Rows of the widest unit whose gradients' covariance is kept, so that all of them together fit."""
    left = subject.memory.gradients
    for rows in sorted(unit.shape[0] for unit in subject.model.units.values() if unit.kind != "embedding"):
        left -= 4 * rows * rows
        if left < 0:
            return rows - 1
    return 1 << 30


def raised(model: Model, sensitivities: Mapping[str, Sensitivity]) -> dict[str, torch.Tensor]:
    """Exponents of steps by unit, of those whose rows' outputs are felt."""
    found = {name: felt.gradient for name, felt in sensitivities.items() if felt.weight is None}
    units = {name: unit for name, unit in model.units.items() if not looked_up_alone(unit)}
    rows = {name: value for name, value in found.items() if name in units and value.shape == units[name].shape[:1] and bool(value.any())}
    least = lambda name: HEAD_LEAST if units[name].parameter in model.trunk else LEAST
    return {name: raised_by(value, least(name)) for name, value in rows.items()}


def tables(model: Model, sensitivities: Mapping[str, Sensitivity]) -> dict[str, torch.Tensor]:
    """How much the output feels the entries of embeddings (columns, columns)."""
    found = {name: one.table for name, one in sensitivities.items() if name in model.units}
    return {name: value for name, value in found.items() if value is not None and bool(value.any()) and finite(value)}


def set_by(script: Script, model: Model, sensitivities: Mapping[str, Sensitivity]) -> None:
    """Let a script's sweeps know both."""
    script.raised, script.felt = raised(model, sensitivities), tables(model, sensitivities)


def told(found: Mapping[str, torch.Tensor]) -> dict[str, list[int]]:
    """JSON value of exponents."""
    return {name: found[name].tolist() for name in sorted(found)}


def read(value: Mapping[str, list[int]]) -> dict[str, torch.Tensor]:
    """Inverse of ``told``."""
    return {name: torch.tensor(exponents, dtype=torch.int16) for name, exponents in value.items()}
