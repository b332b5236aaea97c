"""Assemble: the chosen options are applied in call order, each on the inputs that the compressed model really produces."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch

from modicum.core.errors import ModelError
from modicum.core.files import write_json
from modicum.core.finite import finite
from modicum.core.method import Need
from modicum.core.option import Option
from modicum.core.unit import Site, Stats, Unit
from modicum.data.splits import Batch
from modicum.forms import Dense, Form
from modicum.models.model import Model
from modicum.sweep import Script, Stage, Sweep
from modicum.sweep.ranks import LONE, Ranks, operations
from modicum.sweep.spill import SpillPool
from modicum.work.store import ChainStore, FormStore

# Weights so small that their columns' calls cost as much as what they do, and how many are treated at once at the most.
_SMALL, _MOST = 1 << 21, 4
# What there is to tell of weights that are not those of the original any more.
_OWN = "weights that are cut, or hold zeros that stay, are made to give what they give on their own inputs, not what the original gave"


class Assembly:
    """Makes the forms of a plan, block by block; what is done survives an interruption after any block.

    ``options`` maps unit names to what is applied; ``start`` gives units that a structural change has altered already, ``biases`` and
    ``dropped`` belong to it. ``felts`` say how the output feels the rows of units together. Of several ``ranks`` each makes the forms that fall
    to it, and all go on with the forms of all.
    """

    def __init__(
        self, model: Model, script: Script, options: Mapping[str, Option], directory: Path, *, start: Mapping[str, Form] | None = None,
        biases: Mapping[str, torch.Tensor] | None = None, dropped: frozenset[str] = frozenset(), ranks: Ranks = LONE,
        felts: Mapping[str, torch.Tensor] | None = None,
    ):  # fmt: skip
        self.model, self.script, self.options, self.felts = model, script, options, felts or {}
        self.start, self.biases, self.dropped, self.ranks = start or {}, biases or {}, dropped, ranks
        self.store = FormStore(directory / "forms", ranks)
        self.directory = directory
        self.events: list[str] = []
        self._pending: dict[str, dict[str, Form]] = {}

    def treat(self, stage: Stage) -> dict[str, Form]:
        """Apply each unit's option to the stage."""
        forms = {unit.name: self.store[unit.name] for unit in stage.units if unit.name in self.store}
        made = self._made({unit.name: stage.stats[unit.name] for unit in stage.units if unit.name not in forms})
        if made:
            self._pending.setdefault(stage.block, {}).update(made)
        if not stage.block:
            self._flush("")
        return forms | made

    def _made(self, stats: Mapping[str, Stats]) -> dict[str, Form]:
        """Forms of the units that are altered, each made by one rank."""
        units = self.model.units
        for name in stats.keys() & self.felts.keys() - self.start.keys():
            stats[name].coupled = self.felts[name]
        self._set_beside(stats)
        forms = {}
        for name, (form, events) in self.ranks.deal(
            ", ".join(stats), {name: operations(units[name]) for name in stats}, lambda name: self._make(units[name], stats[name])
        ):
            self._tell(events)
            if form is not None:
                forms[name] = form
        return forms

    def _set_beside(self, stats: Mapping[str, Stats]) -> None:
        """Small weights that have the same inputs and take the same option: a method may solve them at once, one column of all after the other."""
        groups: dict[tuple[int, str], list[str]] = {}
        for name, one in stats.items() if self.ranks.count == 1 else ():
            if name not in self.start and one.moment is not None and self.model.units[name].size <= _SMALL:
                groups.setdefault((id(one.cache), str(self.options.get(name, Option()))), []).append(name)
        lots = [names[low : low + _MOST] for names in groups.values() for low in range(0, len(names), _MOST)]
        for name, *others in lots:
            known = [(self.model.matrix(self.model.units[other]), stats[other]) for other in others]
            stats[name].beside = tuple((weight, theirs) for weight, theirs in known if finite(weight))

    def _make(self, unit: Unit, stats: Stats) -> tuple[Form | None, list[str]]:
        """A unit's form, or None where it stays, and what there is to tell of it."""
        option = self.options.get(unit.name, Option())
        begun = self.start.get(unit.name)
        if not option.steps:
            return begun, []
        stored = self.model.matrix(unit)
        if not finite(stored):
            raise ModelError(f"{unit.name}: weights must be finite, hold NaN or Inf. Repair the checkpoint.")
        own: list[str] = []
        if stats.drift is not None and (begun is not None or unit.pruned):
            stats.drift, own = None, [_OWN] * (Need.DRIFT in option.needs)
        stats.reference = stored if begun is None else begun.dense()  # a repair mends what the option lost, not what a drop removed
        form = option.apply(Site(unit.name, "unit", (unit,)), {unit.name: stats}, {unit.name: begun or Dense(stored)}).forms[unit.name]
        stats.finished(unit)
        stats.beside = ()
        stats.made.clear()
        return form, [*own, *(f"{unit.name}: {event}" for event in stats.events)]

    def _tell(self, events: Iterable[str]) -> None:
        self.events += [event for event in dict.fromkeys(events) if event not in self.events]

    def _kept_events(self) -> list[str]:
        path = self.directory / "events.json"
        return json.loads(path.read_text()) if path.exists() else []

    def _flush(self, block: str) -> None:
        forms = self._pending.pop(block, {})
        if forms:
            # Before the forms: a unit that is made again tells the same again, one that is not tells nothing.
            write_json(self.directory / "events.json", self.events)
            self.store.put(block or f"trunk-{next(iter(forms))}".replace("/", "_"), forms)

    def run(self, batches: Sequence[Batch], *, seed: int, pool: SpillPool, tick: Callable[[str], None] = lambda _: None) -> FormStore:
        """Sweep and return the forms of every treated unit."""
        self.events = self.ranks.first("events kept", self._kept_events)
        asked = {name: option.needs for name, option in self.options.items()}
        chain = ChainStore(self.directory / "chain", self.ranks)

        def on_block(name: str, outputs: dict) -> None:
            self._tell(sweep.chronicle.events)
            self._flush(name)
            chain.keep(name, outputs)
            tick(name)

        apart = {name for name in self.script.uncalled if name in self.options or name in self.start}
        values = {
            name: form for name in sorted(apart) if (form := self.treat(Stage((self.model.units[name],), "", {name: Stats()})).get(name))
        }
        sweep = Sweep(
            self.model, batches, self.script, self.treat, needs=frozenset().union(*asked.values()), seed=seed, pool=pool, values=values,
            biases=self.biases, dropped=self.dropped, on_block=on_block, replayed=chain.replayed(), ranks=self.ranks, alongside=True, asked=asked,
        )  # fmt: skip
        altered = {name for name, option in self.options.items() if option.steps} | self.start.keys()
        sweep.finish(altered - self.script.uncalled)
        self._tell(sweep.chronicle.events)
        gone = {unit.name for unit in self.model.units.values() if Script.home(unit.name, self.dropped)}
        for name in [*self.options, *self.start]:
            if name not in self.store and name not in gone and (self.options.get(name, Option()).steps or name in self.start):
                option = self.options[name].without_data() if name in self.options else Option()
                if option is None:
                    raise ModelError(f"{name}: was never called, and its option needs data. Choose another option for it.")
                self.options = {**self.options, name: option}
                made = self._made({name: Stats()})
                write_json(self.directory / "events.json", self.events)
                self.store.put(f"late-{name}".replace("/", "_"), made)
        return self.store
