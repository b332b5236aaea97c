"""Measure: one sweep on the original model gives the harm and the exact bytes of every option on every site."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from modicum.core.errors import ModelError, SettingError
from modicum.core.option import Option
from modicum.core.plan import Choice, Table
from modicum.core.unit import Site, Stats, Unit
from modicum.data.splits import Batch
from modicum.export import Target
from modicum.export._family import METADATA, SHARD_BYTES, header_share, tensor_bytes
from modicum.fit.harm import harm
from modicum.fit.store import ChainStore, write_json
from modicum.forms import Dense, Form
from modicum.models.model import Model
from modicum.sweep import Script, Sensitivity, Stage, Sweep
from modicum.sweep.spill import SpillPool

# Digits of file offsets assumed in a header: ten gigabytes.
_DIGITS = 10


def offered(target: Target, site: Site, menu: Sequence[Option]) -> dict[str, Option]:
    """Options of the menu as the target can hold them on ``site``, by their text; keeping the weights is one where the target allows it."""
    found = {}
    for option in (Option(), *menu):
        fitted = target.adapt(site, option)
        if fitted is not None:
            found[str(fitted)] = fitted
    return found


def fixed_bytes(target: Target, sites: Sequence[Site]) -> int:
    """Bytes that no choice changes: everything outside the sites, and the header's frame."""
    units = {unit.parameter for site in sites for unit in site.units}
    layout = target.layout({}, {}, frozenset())
    inside = {name for site in sites for unit in site.units for name in target.unit_entries(unit, _shadow(unit))} | units
    rest = {name: entry for name, entry in layout.entries.items() if name not in inside}
    frame = 8 + len(json.dumps({"__metadata__": METADATA}, separators=(",", ":"))) + 8
    total = frame + sum(tensor_bytes(*entry) + header_share(name, *entry, _DIGITS) for name, entry in rest.items())
    dense = sum(tensor_bytes(*entry) for entry in layout.entries.values())
    return total if dense < SHARD_BYTES else total + sum(len(name) + 64 for name in layout.entries) * 4


def _shadow(unit: Unit) -> Form:
    return Dense(torch.empty(unit.shape, dtype=unit.dtype, device="meta"))


def sizes(target: Target, sites: Sequence[Site], menu: Sequence[Option]) -> Table:
    """The table's bytes without its harms, from forms of zeros: what is within reach, before any work."""
    table = Table(fixed=fixed_bytes(target, sites))
    known: dict = {}
    for site in sites:
        choices = []
        for text, option in offered(target, site, menu).items():
            size = values = 0
            for unit in site.units:
                form = blueprint(option, unit, known)
                size += target.unit_bytes(unit, form, _DIGITS)
                values += form.values
            choices.append(Choice(text, size, values, 0.0))
        if not choices:
            widths = ", ".join(str(width) for width in sorted({unit.shape[1] for unit in site.units}))
            raise SettingError(
                f"{site.name}: at least one option of the menu must fit target {target.name}, none does for rows of {widths}. "
                "Pass a --group that divides them."
            )
        table.choices[site.name] = choices
    return table


def blueprint(option: Option, unit: Unit, known: dict) -> Form:
    """A form of zeros with the bytes that ``option`` gives ``unit``; ``known`` keeps one per option and shape."""
    key = (str(option), unit.shape, unit.dtype)
    if key not in known:
        known[key] = _blueprint(option, unit)
    return known[key]


def _blueprint(option: Option, unit: Unit) -> Form:
    if not option.steps:
        return _shadow(unit)
    steps = tuple(step.blueprint() if hasattr(step, "blueprint") else step for step in option.steps)
    zeros = torch.zeros(unit.shape, dtype=unit.dtype)
    fitted = Option(steps).without_data()
    if fitted is None:
        raise ModelError(f"{option}: its bytes cannot be told without data.")
    return fitted.apply(Site(unit.name, "unit", (unit,)), {unit.name: Stats(reference=zeros)}, {unit.name: Dense(zeros)}).forms[unit.name]


class Measurement:
    """Fills a table stage by stage; what is done survives an interruption after any block."""

    def __init__(
        self, model: Model, script: Script, target: Target, sites: Sequence[Site], menu: Sequence[Option],
        sensitivities: Mapping[str, Sensitivity], directory: Path | None = None,
    ):  # fmt: skip
        self.model, self.script, self.target, self.sensitivities = model, script, target, sensitivities
        self.options = {site.name: offered(target, site, menu) for site in sites}
        self.sites = list(sites)
        self.site_of = {unit.name: site.name for site in sites for unit in site.units}
        self.directory = directory
        self.done: dict[str, dict[str, tuple[int, int, float | None]]] = {}
        self.energy: dict[str, float] = {}
        self.events: list[str] = []
        if directory is not None and (directory / "harms.json").exists():
            stored = json.loads((directory / "harms.json").read_text())
            self.done = {unit: {text: tuple(v) for text, v in found.items()} for unit, found in stored["done"].items()}
            self.energy, self.events = stored["energy"], stored["events"]

    def treat(self, stage: Stage) -> None:
        """Measure every option on every unit of the stage; nothing is changed."""
        for unit in stage.units:
            if unit.name in self.site_of and unit.name not in self.done:
                self._unit(unit, stage.stats[unit.name])

    def _unit(self, unit: Unit, stats: Stats) -> None:
        stored = self.model.matrix(unit)
        if not torch.isfinite(stored).all():
            raise ModelError(f"{unit.name}: weights must be finite, hold NaN or Inf. Repair the checkpoint.")
        weight, sensitivity = stored.float(), self.sensitivities.get(unit.name)
        stats.reference = stored
        self.done[unit.name] = {}
        whole = harm(unit, weight, stats, sensitivity, weight)
        if whole is not None:
            self.energy[unit.name] = whole
        for text, option in self.options[self.site_of[unit.name]].items():
            form = self.form(unit, option, stats, stored)
            error = weight - form.dense().float() if option.steps else None
            cost = 0.0 if error is None else harm(unit, error, stats, sensitivity, weight)
            if cost is None and error is not None:
                cost = -float(
                    error.square().sum() / weight.square().sum().clamp_min(1e-30)
                )  # relative: weighed once all energies are known
            self.done[unit.name][text] = (self.target.unit_bytes(unit, form, _DIGITS), form.values, cost)
        self.events += [f"{unit.name}: {event}" for event in dict.fromkeys(stats.events)]
        stats.reference = None

    def form(self, unit: Unit, option: Option, stats: Stats, stored: torch.Tensor) -> Form:
        """What ``option`` makes of a unit."""
        if not option.steps:
            return Dense(stored)
        return option.apply(Site(unit.name, "unit", (unit,)), {unit.name: stats}, {unit.name: Dense(stored)}).forms[unit.name]

    def save(self) -> None:
        """Write what is done."""
        if self.directory is not None:
            write_json(self.directory / "harms.json", {"done": self.done, "energy": self.energy, "events": self.events})

    def run(self, batches: Sequence[Batch], *, seed: int, pool: SpillPool, tick: Callable[[str], None] = lambda _: None) -> Table:
        """Sweep and return the table."""
        needs = frozenset().union(*(option.needs for found in self.options.values() for option in found.values()))
        chain = ChainStore(self.directory / "chain") if self.directory is not None else None

        def on_block(name: str, outputs: dict) -> None:
            self.save()
            if chain is not None:
                chain.keep(name, outputs)
            tick(name)

        sweep = Sweep(
            self.model, batches, self.script, self.treat, needs=needs, seed=seed, pool=pool, on_block=on_block,
            replayed=chain.replayed() if chain is not None else None,
        )  # fmt: skip
        sweep.finish()
        self.events += [event for event in sweep.chronicle.events if event not in self.events]
        for unit in self.model.units.values():
            if unit.name in self.site_of and unit.name not in self.done:
                self._unit(unit, Stats())
        self.save()
        return self.table()

    def table(self) -> Table:
        """Sum units into sites. Units whose inputs or gradients were not seen take the median energy of those that were, times their relative
        weight error.
        """
        typical = sorted(self.energy.values())[len(self.energy) // 2] if self.energy else 1.0
        table = Table(fixed=fixed_bytes(self.target, self.sites))
        for site in self.sites:
            choices = []
            for text in self.options[site.name]:
                found = [self.done[unit.name][text] for unit in site.units]
                harms = [cost if cost is not None and cost >= 0 else -(cost or 0.0) * typical for _, _, cost in found]
                choices.append(Choice(text, sum(size for size, _, _ in found), sum(values for _, values, _ in found), sum(harms)))
            table.choices[site.name] = choices
        return table
