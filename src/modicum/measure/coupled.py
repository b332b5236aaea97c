"""Coupled cuts as a measurement keeps them: to find them again takes as long as to choose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from modicum.core.unit import Axis, Site, Unit

_SIDES = {"rows": 0, "columns": 1}


def told(sites: Iterable[Site]) -> list[dict[str, Any]]:
    """Cuts as JSON: for each unit of a site its side, and what vanishes with each group."""
    return [{"name": site.name, "axes": [[axis.unit, axis.side, _runs(axis.groups)] for axis in site.axes]} for site in sites]


def read(said: Any, units: Mapping[str, Unit]) -> dict[str, Site]:
    """The cuts by name. Raises ``ValueError``, ``KeyError`` or ``TypeError`` for what cannot be one of these units."""
    found = {}
    for each in said:
        axes = tuple(Axis(unit, side, _groups(runs, units[unit].shape[_SIDES[side]])) for unit, side, runs in each["axes"])
        if len({len(axis.groups) for axis in axes}) != 1:
            raise ValueError(f"{each['name']}: units differ in their groups")
        found[each["name"]] = Site(each["name"], "cut", tuple(units[axis.unit] for axis in axes), axes)
    return found


def _runs(groups: tuple[tuple[int, ...], ...]) -> list:
    """Groups; where all are as wide and follow each other, their number and width."""
    width = len(groups[0])
    following = tuple(tuple(range(place, place + width)) for place in range(0, width * len(groups), width))
    return [len(groups), width] if groups == following else [list(group) for group in groups]


def _groups(runs: list, size: int) -> tuple[tuple[int, ...], ...]:
    if len(runs) == 2 and all(isinstance(value, int) for value in runs):
        count, width = runs
        if count < 1 or not 0 < count * width <= size:
            raise ValueError(f"{count} groups of {width} are not in {size}")
        return tuple(tuple(range(group * width, (group + 1) * width)) for group in range(count))
    groups = tuple(tuple(map(int, group)) for group in runs)
    if not all(0 <= place < size for group in groups for place in group):
        raise ValueError(f"a group reaches beyond {size}")
    return groups
