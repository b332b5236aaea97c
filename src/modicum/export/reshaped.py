"""What a target's loader makes of a model with fewer heads, channels or blocks, tried on a small one.

A config may give the shapes that a cut leaves, and the class compute with a number that it takes from elsewhere: slopes by the count of heads, a
scale by a width. Shapes alone do not show that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from modicum.core.method import Change
from modicum.core.option import Option
from modicum.core.unit import Site, Stats
from modicum.export.narrow import Incision
from modicum.forms import Cut, Dense, Form
from modicum.sweep import Script
from modicum.sweep.coupling import coupled_cuts

if TYPE_CHECKING:
    from modicum.export.probe import Trial

_WHOLE_ROWS = Option.parse("nearest bits=8 group=0")
# Shares of a cut's groups that remain: the first that the config can say.
_SHARES = (1 / 2, 3 / 4, 1 / 4)


def cuts(trial: Trial) -> dict[str, str]:
    """By kind of weight why a model whose weights of this kind are cut does not come back right; those that come back right are in none."""
    changed = {unit.name for site in trial.target.sites() for unit in site.units if unit.kind == "linear"}
    found = coupled_cuts(trial.model, trial.script, trial.batch)
    sites = {site.name: site for site in found if all(unit.name in changed for unit in site.units)}
    off: dict[str, str] = {}
    for members in trial.target.together(sites).values():
        kept = next((some for some in _fewer(members) if trial.target.narrows(members, some)), None)
        if kept is not None and (why := trial.written(_rounded(trial, _cut(trial, members, kept)))):
            off |= {unit.likeness: why for member in members for unit in member.units}
    return off


def _fewer(members: Sequence[Site]) -> Iterator[dict[str, list[int]]]:
    """Groups that may remain of each cut, not the first ones: what belongs to a group's place shows."""
    for share in _SHARES:
        counts = {member.name: len(member.axes[-1].groups) for member in members}
        left = {name: max(1, int(count * share)) for name, count in counts.items()}
        if all(left[name] < count for name, count in counts.items()):
            yield {name: list(range(count - left[name], count)) for name, count in counts.items()}


def _cut(trial: Trial, members: Sequence[Site], kept: dict[str, list[int]]) -> dict[str, Form]:
    found: dict[str, Form] = {}
    for name, incision in Incision.of_cuts(members, kept).items():
        inner = incision.pick(trial.model.matrix(trial.model.units[name])).contiguous()
        found[name] = Cut(Dense(inner), incision.rows, incision.columns)
    return found


def _rounded(trial: Trial, forms: dict[str, Form], dropped: frozenset[str] = frozenset()) -> dict[str, Form]:
    """The forms, with integers wherever a plan may have them beside."""
    found = dict(forms)
    for site in trial.target.sites():
        option = trial.target.adapt(site, _WHOLE_ROWS)
        there = [unit for unit in site.units if not Script.home(unit.name, dropped)]
        if option is not None and option.steps and len(there) == len(site.units):
            current = {unit.name: forms.get(unit.name) or Dense(trial.model.matrix(unit).contiguous()) for unit in there}
            found |= option.steps[0].apply(site, {unit.name: Stats() for unit in there}, current).forms
    return found


def depth(trial: Trial) -> str:
    """Why a model without one of its blocks does not come back right, or an empty string."""
    for name in (name for name in trial.script.blocks[1:] if name in trial.script.droppable):
        dropped = frozenset([name])
        if not trial.target.holds(Change(dropped=(name,))):
            return trial.written(_rounded(trial, {}, dropped), dropped)
    return ""
