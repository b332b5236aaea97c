"""Whether a budget needs anything but rounding: one grid on every layer, judged on a few sequences before anything is measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from modicum.core.option import Option
from modicum.core.unit import Site, Stats
from modicum.data.splits import Batch
from modicum.export import Target
from modicum.forms import Dense, Form
from modicum.judge.degree import nearly_none
from modicum.judge.judge import between
from modicum.judge.plain import plains
from modicum.judge.quality import RuinedError, compare, streamed
from modicum.models.model import Model
from modicum.table.menu import Menu
from modicum.table.sizing import Sizing

# Sequences that it is told on.
_SEQUENCES = 4


def rounding_suffices(target: Target, sizing: Sizing, menu: Menu, most: int, judged: Sequence[Batch]) -> bool:
    """Whether the largest grid that fits ``most`` bytes on every layer that takes one is near-lossless, its codes the nearest.

    What a choice adds then, and any solver, is below what can be told from nothing; other kinds of option, and far fewer bits, are for budgets
    that hurt. *Needs and cost*: every weight is rounded once, and two forwards of ``judged``'s first sequences.
    """
    table = sizing.table()
    found = {table.cost(picks): picks for picks in plains(target, menu, table).values()}
    sizes = [size for size in found if size <= most]
    if not sizes:
        return False
    picks, options = found[max(sizes)], dict[str, Option]()
    for site in target.sites():
        option = Option.parse(table.choices[site.name][picks[site.name]].option).without_data()
        options |= {} if option is None or not option.steps else dict.fromkeys((unit.name for unit in site.units), option)
    model, batches = target.model, between(judged, 0, _SEQUENCES, target.script.whole)
    try:
        quality = compare(
            streamed(model.twin(), batches, target.script), streamed(model, batches, target.script, _Rounded(model, options)), batches, False,
            target.script.outputs,
        )  # fmt: skip
    except RuinedError:
        return False
    return float(np.mean(quality.divergence)) < nearly_none(quality.metric)


@dataclass(frozen=True)
class _Rounded(Mapping[str, Form]):
    """What options without data make of units, each when it is asked for."""

    model: Model
    options: Mapping[str, Option]

    def __getitem__(self, name: str) -> Form:
        unit = self.model.units[name]
        stored = self.model.matrix(unit)
        site, stats = Site(name, "unit", (unit,)), {name: Stats(reference=stored)}
        return self.options[name].apply(site, stats, {name: Dense(stored)}).forms[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.options)

    def __len__(self) -> int:
        return len(self.options)
