"""Forms of zeros: the exact bytes of what an option would give, before anything is made."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import cached_property

import torch

from modicum.core.errors import ModelError
from modicum.core.method import Method
from modicum.core.option import Option
from modicum.core.unit import Site, Stats, Unit
from modicum.forms import Cut, Dense, Form


def shadow(unit: Unit) -> Form:
    """A unit as it is, without its values."""
    return Dense(torch.empty(unit.shape, dtype=unit.dtype, device="meta"))


def lost_of(groups: Sequence[Sequence[int]], kept: Sequence[int]) -> int:
    """Rows that go with all groups but those that are kept."""
    return sum(map(len, groups)) - sum(len(groups[place]) for place in kept)


def remaining_shape(
    cut: Site, unit: Unit, kept: Sequence[int], lost: Callable[[Sequence[Sequence[int]], Sequence[int]], int] = lost_of
) -> tuple[int, int]:
    """Rows and columns of a unit that remain when a cut keeps ``kept`` groups."""
    rows, columns = unit.shape
    for member, axis in zip(cut.units, cut.axes):
        if member.name == unit.name:
            gone = lost(axis.groups, kept)
            rows, columns = (rows - gone, columns) if axis.side == "rows" else (rows, columns - gone)
    return rows, columns


def zeros(option: Option, unit: Unit, shape: tuple[int, int]) -> Form:
    """What an option makes of zeros, of which a cut leaves ``shape``. Raises ``ModelError`` where that takes data."""
    masks = [None if kept == size else torch.arange(size) < kept for kept, size in zip(shape, unit.shape)]
    if not option.steps:
        inner = Dense(torch.empty(shape, dtype=unit.dtype, device="meta"))
        return inner if shape == unit.shape else Cut(inner, *masks)
    if option.steps[-1].wraps:
        within = {unit.name: zeros(Option(option.steps[:-1]), unit, shape)}
        return Option((_sketch(option.steps[-1]),)).apply(_alone(unit), {unit.name: Stats()}, within).forms[unit.name]
    steps = tuple(map(_sketch, option.steps))
    fitted = Option(steps).without_data()
    if fitted is None:
        raise ModelError(f"{option}: its bytes cannot be told without data.")
    if all(map(_by_rows, fitted.steps)):
        alike = _rows_alike(fitted, unit, shape)
        return alike if shape == unit.shape else Cut(alike, *masks)
    blank = torch.zeros(unit.shape, dtype=unit.dtype)
    start: Form = Dense(blank) if shape == unit.shape else Cut(Dense(torch.zeros(shape, dtype=unit.dtype)), *masks)
    return fitted.apply(_alone(unit), {unit.name: Stats(reference=blank)}, {unit.name: start}).forms[unit.name]


def _by_rows(step: Method) -> bool:
    """Whether codes of zeros are as many in each row, and no scales stand over several."""
    return type(step).family() == "quantize" and getattr(step, "group", 0) >= 0 and not getattr(step, "double", False)


def _sketch(step: Method) -> Method:
    """What gives the same bytes for the least work."""
    return step.blueprint() if hasattr(step, "blueprint") else step


def _alone(unit: Unit) -> Site:
    return Site(unit.name, "unit", (unit,))


# Rows of zeros by what their codes hang on, so many at most.
_ROWS: dict[tuple[Hashable, ...], Form] = {}
_MOST_ROWS = 4096


def _rows_alike(option: Option, unit: Unit, shape: tuple[int, int]) -> Form:
    """Codes of zeros, one row of which stands for all: a matrix of the largest models takes no memory, and no time."""
    form = _row(option, unit, shape[1])
    derived = {name for cls in type(form).__mro__ for name, value in vars(cls).items() if isinstance(value, cached_property)}
    alike = object.__new__(type(form))
    for name, value in vars(form).items():
        if name not in derived:
            of_rows = isinstance(value, torch.Tensor) and name not in form.shared
            setattr(alike, name, value.expand(shape[0], *[-1] * max(1, value.ndim - 1)) if of_rows else value)
    alike.shape = shape
    return alike


def _row(option: Option, unit: Unit, columns: int) -> Form:
    """Codes of one row of zeros, which many weights of a model have in common."""
    key = (option, columns, unit.dtype, unit.kind, unit.groups, unit.pruned)
    if key not in _ROWS:
        one = replace(unit, shape=(1, columns))
        zeros = torch.zeros(one.shape, dtype=unit.dtype)
        change = option.apply(Site(unit.name, "unit", (one,)), {unit.name: Stats(reference=zeros)}, {unit.name: Dense(zeros)})
        if len(_ROWS) >= _MOST_ROWS:
            _ROWS.clear()
        _ROWS[key] = change.forms[unit.name]
    return _ROWS[key]
