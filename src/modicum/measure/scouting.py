"""Whether a budget needs anything but rounding: one grid on every layer, judged on a few sequences before anything is measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from modicum.core.method import Method
from modicum.core.option import Option
from modicum.core.plan import Picks, Table
from modicum.core.unit import Site, Stats
from modicum.data.splits import Batch
from modicum.forms import Dense, Form
from modicum.judge.degree import nearly_none
from modicum.judge.judge import between
from modicum.judge.plain import plains
from modicum.judge.quality import RuinedError, compare, streamed
from modicum.models.model import Model
from modicum.quantize._family import Quantizer
from modicum.table.menu import Menu
from modicum.table.sizing import Sizing

# Sequences that it is told on.
_SEQUENCES = 4
# What the nearest codes may lose, of what is near-lossless: codes that are solved for lose less than half of that (a quarter, of a sentence encoder
# at 8 bits per weight).
_NEAREST = 2.0
# Where codes that cost nothing lose so many times that, on one sequence, codes that cost a search are not looked at.
_HOPELESS = 3.0


def rounding_suffices(sizing: Sizing, menu: Menu, most: int, judged: Sequence[Batch]) -> bool:
    """Whether the largest grid that fits ``most`` bytes on every layer that takes one is near-lossless, told by its nearest codes; what it leaves
    goes to the next larger one, on as many layers as that buys.

    What a choice adds then, and any solver, is below what can be told from nothing; other kinds of option, and far fewer bits, are for budgets
    that hurt. *Needs and cost*: every weight is rounded once or twice, and two forwards of ``judged``'s first sequences.
    """
    target, table = sizing.target, sizing.table()
    grids = Menu((option for option in menu if isinstance(option.steps[0], Quantizer)), suits=menu.suits, rules=menu.rules)
    picks, options = _largest(table, plains(target, grids or menu, table).values(), most), dict[str, Option]()
    if picks is None:
        return False
    for site in target.sites():
        option = Option.parse(table.choices[site.name][picks[site.name]].option).without_data()
        options |= {} if option is None or not option.steps else dict.fromkeys((unit.name for unit in site.units), option)
    cheapest = {name: Option((*option.steps[:-1], _cheapest(option.steps[-1]))) for name, option in options.items()}
    return _loses(sizing, cheapest, judged, 1, _HOPELESS * _NEAREST) and _loses(sizing, options, judged, _SEQUENCES, _NEAREST)


def _cheapest(step: Method) -> Method:
    return step.blueprint() if isinstance(step, Quantizer) else step


def _loses(sizing: Sizing, options: Mapping[str, Option], judged: Sequence[Batch], sequences: int, most: float) -> bool:
    """Whether what options make of units loses less than ``most`` times what is nearly nothing."""
    target, model = sizing.target, sizing.target.model
    batches = between(judged, 0, sequences, target.script.whole)
    try:
        quality = compare(
            streamed(model.twin(), batches, target.script), streamed(model, batches, target.script, _Rounded(model, options)), batches, False,
            target.script.outputs,
        )  # fmt: skip
    except RuinedError:
        return False
    return float(np.mean(quality.divergence)) < most * nearly_none(quality.metric)


def _largest(table: Table, found: Iterable[Picks], most: int) -> Picks | None:
    """The largest selection of those within ``most`` bytes, with what it leaves spent on choices of the next larger one, site by site."""
    rising = sorted(found, key=table.cost)
    fitting = [picks for picks in rising if table.cost(picks) <= most]
    if not fitting:
        return None
    picks, larger = dict(fitting[-1]), rising[len(fitting) :][:1]
    for site in sorted(picks, key=lambda site: -table.choices[site][picks[site]].bytes):
        for other in larger:
            raised = {**picks, site: other[site]}
            picks = raised if table.cost(raised) <= most else picks
    return picks


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
