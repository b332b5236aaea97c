"""Measure: one sweep on the original model gives the harm of every option on every unit, of every cut, and of every span of blocks."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from modicum.core.errors import ModelError
from modicum.core.files import write_json
from modicum.core.finite import finite
from modicum.core.log import LOG
from modicum.core.method import Need
from modicum.core.option import Option
from modicum.core.unit import Site, Stats, Unit
from modicum.data.splits import Batch
from modicum.drop._family import SiteCutter
from modicum.export import Target
from modicum.forms import Dense, Form
from modicum.measure.rows import Sample
from modicum.models.model import Model
from modicum.numerics.threads import total
from modicum.sweep import Script, Sensitivity, Stage, Sweep
from modicum.sweep.coupling import kept_rows
from modicum.sweep.ranks import LONE, Ranks, operations
from modicum.sweep.spill import SpillPool
from modicum.table.findings import Finding, Findings, Structural
from modicum.table.harm import HARMS, looked_up_alone, of_inputs
from modicum.table.harm import rows as contributions
from modicum.table.menu import levels, offered
from modicum.table.waste import least_of
from modicum.table.zeros import zeros
from modicum.work.store import ChainStore

# Harm of a cut whose gradients were not seen, in nats: not to be chosen lightly.
_UNKNOWN = 1.0

Keep = Callable[[Unit, Option, str, Form], None]


@dataclass
class _Piece:
    """What was measured of one unit: its energy, every option's finding, row sums and form, and what there is to tell."""

    energy: float | None
    findings: dict[str, Finding] = field(default_factory=dict)
    rows: dict[str, torch.Tensor] = field(default_factory=dict)
    forms: list[tuple[Option, Form]] = field(default_factory=list)
    events: list[str] = field(default_factory=list)


class Measurement:
    """Fills findings stage by stage; what is done survives an interruption after any block.

    ``targets`` are those whose options are measured; ``harm`` names how harm is told; ``keep(unit, option, cut option, form)`` is shown every form
    that was made. Of several ``ranks`` each measures the units that fall to it, and all find the same.
    """

    def __init__(
        self, model: Model, script: Script, targets: Sequence[Target], menus: Sequence[Sequence[Option]],
        sensitivities: Mapping[str, Sensitivity], directory: Path | None = None, *, cuts: Mapping[str, Site] | None = None,
        harm: str = "fisher", keep: Keep | None = None, ranks: Ranks = LONE,
    ):  # fmt: skip
        self.model, self.script, self.sensitivities = model, script, sensitivities
        self.harm, self.keep, self.directory, self.ranks = harm, keep, directory, ranks
        self.options: dict[str, dict[str, Option]] = {}
        for target, menu in zip(targets, menus):
            for site in target.sites():
                for unit in site.units:
                    self.options.setdefault(unit.name, {}).update(offered(target, site, menu))
        self.cuts = {site.axes[-1].unit: site for site in (cuts or {}).values()}
        self.levels: dict[str, dict[str, SiteCutter]] = {site.name: {} for site in self.cuts.values()}
        for site in self.cuts.values():
            for target, menu in zip(targets, menus):
                self.levels[site.name].update(levels(target, site, menu))
        self.producers = {unit.name: site for site in self.cuts.values() for unit in site.units[:-1]}
        self.found = Findings()
        self._leave_out_unfelt()
        self._rows: dict[str, dict[str, torch.Tensor]] = {}
        self._left: dict[str, dict[str, float]] = {}
        self._uses: Counter[str] = Counter()
        self._written: dict[tuple[str, tuple[int, ...], torch.dtype], int] = {}
        self._begun: dict[str, Form] = {}  # what first steps made of the unit at hand, on which others may stand
        if directory is not None and (directory / "harms.json").exists():
            self.found = Findings.from_json(json.loads((directory / "harms.json").read_text()))

    def _leave_out_unfelt(self) -> None:
        """Nothing is known of a weight that no gradient has reached, such as that of an expert which met no token; it is not free to spoil."""
        unfelt = [name for name in self.model.units if name in self.sensitivities and not bool(self.sensitivities[name].gradient.any())]
        self.sensitivities = {name: felt for name, felt in self.sensitivities.items() if name not in unfelt}
        if unfelt:
            others = f" and {len(unfelt) - 1} more" if len(unfelt) > 1 else ""
            self.found.events.append(
                f"{unfelt[0]}{others}: no gradient reached them in the sequences that errors are weighed on. Their harm is that of a typical "
                "weight. More --gradient-samples may reach them."
            )

    def treat(self, stage: Stage) -> None:
        """Measure every option on every unit of the stage; nothing is changed."""
        self._measured({
            unit.name: stage.stats[unit.name] for unit in stage.units if unit.name in self.options and unit.name not in self.found.units
        })  # fmt: skip

    def _measured(self, stats: Mapping[str, Stats]) -> None:
        """Each unit by one rank; what it found goes to all."""
        units = self.model.units
        tasks = {name: operations(units[name]) for name in stats}
        cutters = {text: step for levels in self.levels.values() for text, step in levels.items()}
        self._left = {text: self._remaining(step, stats) for text, step in cutters.items()}
        for name, piece in self.ranks.deal(", ".join(stats), tasks, lambda name: self._unit(units[name], stats[name])):
            for option, form in piece.forms:
                if self.keep is not None:
                    self.keep(units[name], option, "", form)
            if piece.energy is not None:
                self.found.energy[name] = piece.energy
            if piece.rows:
                self._rows[name] = piece.rows
            self.found.units[name] = piece.findings
            if name in self.cuts and stats[name].covariance is not None:
                self._cut(self.cuts[name], units[name], stats[name], self.model.matrix(units[name]).float())
            elif name in self.cuts and self.levels[self.cuts[name].name] and stats[name].blocks is not None:
                piece.events.append(f"{self.cuts[name].name}: is not cut, the covariance of {name}'s inputs is not whole")
            self.found.events += piece.events

    def _unit(self, unit: Unit, stats: Stats) -> _Piece:
        stored = self.model.matrix(unit)
        if not finite(stored):
            raise ModelError(f"{unit.name}: weights must be finite, hold NaN or Inf. Repair the checkpoint.")
        sensitivity, weight = self.sensitivities.get(unit.name), stored.float()
        piece = _Piece(HARMS[self.harm](unit, weight, stats, sensitivity, weight))
        options, sample = self.options[unit.name], Sample.of(unit, stats, sensitivity, self.harm)
        some = {text: option for text, option in options.items() if sample is not None and option.by_rows}
        found = self._tried(unit, {text: option for text, option in options.items() if text not in some}, stats, stored, piece)
        if sample is not None:
            found |= self._tried(unit, some, sample.stats(stats), stored[sample.rows], piece, sample)
        piece.findings = {text: found[text] for text in options}
        harms = (f"{text} {'unknown' if one.harm is None else f'{one.harm:.3g}'}" for text, one in piece.findings.items())
        LOG.info("%s: harm of each option: %s", unit.name, ", ".join(harms))
        piece.events = [f"{unit.name}: {event}" for event in dict.fromkeys(stats.events)]
        piece.events += [f"{unit.name}: {sample.event(len(stored))}"] if sample is not None and some else []
        stats.finished(unit)
        return piece

    def _tried(
        self, unit: Unit, options: Mapping[str, Option], stats: Stats, stored: torch.Tensor, piece: _Piece, sample: Sample | None = None
    ) -> dict[str, Finding]:  # fmt: skip
        """What each option costs a unit, told by ``stored``: the whole, or a ``sample`` of its rows, whose forms are of no other use."""
        stats.reference, stats.ahead = stored, tuple(option.steps[0] for option in options.values() if option.steps)
        self._begun, self._uses = {}, Counter(str(option.steps[0]) for option in options.values() if option.steps)
        found, weight = {}, stored.float()
        energy = total(weight.square() if sample is None else weight.square().mul_(sample.counts))
        for text, option in options.items():
            form = self.form(unit, option, stats, stored)
            if sample is None:
                self._shown(unit, option, form, piece)
            error = weight - form.dense().float()
            found[text] = self._finding(unit, option, form, error, stats, weight, energy, piece, sample)
            if option.steps and sample is None and not unit.direct and not looked_up_alone(unit):
                # A form that is only compared may take other bytes than the one that would be written.
                found[text].bits, found[text].least = 8 * self._bytes(unit, option) / unit.size, least_of(unit, error, stats, weight)
            stats.cache.pop("output error", None)
        stats.reference, stats.ahead, self._begun = None, (), {}
        stats.made.clear()
        return found

    def _bytes(self, unit: Unit, option: Option) -> int:
        key = (str(option), unit.shape, unit.dtype)
        if key not in self._written:
            self._written[key] = zeros(option, unit, unit.shape).nbytes
        return self._written[key]

    def _shown(self, unit: Unit, option: Option, form: Form, piece: _Piece) -> None:
        if self.keep is not None and self.ranks.count == 1:
            self.keep(unit, option, "", form)
        elif self.keep is not None:
            piece.forms.append((option, form))

    def _finding(
        self, unit: Unit, option: Option, form: Form, error: torch.Tensor, stats: Stats, weight: torch.Tensor, energy: float,
        piece: _Piece, sample: Sample | None,
    ) -> Finding:  # fmt: skip
        if not option.steps:
            return Finding(0.0, 0.0, 0.0)
        if sample is not None:
            error.mul_(sample.counts.sqrt())
        sensitivity, distance = self.sensitivities.get(unit.name), total(error.square())
        more, taken = of_inputs(self.harm, unit, form, stats, sensitivity, weight)
        if unit.name in self.producers:
            rows = contributions(unit, error, stats, sensitivity)
            if rows is not None:
                piece.rows[str(option)] = rows if taken is None else rows + taken
        cost = HARMS[self.harm](unit, error, stats, sensitivity, weight)
        cost = None if cost is None or more is None else cost + more
        return Finding(cost if cost is None or sample is None else sample.share * cost, distance / max(energy, 1e-30), distance)

    def form(self, unit: Unit, option: Option, stats: Stats, stored: torch.Tensor) -> Form:
        """What ``option`` makes of a unit."""
        if not option.steps:
            return Dense(stored)
        site, first, current = Site(unit.name, "unit", (unit,)), Option(option.steps[:1]), {unit.name: stats}
        form = self._begun.pop(str(first), None)
        if form is None:
            form = first.apply(site, current, {unit.name: Dense(stored)}).forms[unit.name]
        self._uses[str(first)] -= 1
        if self._uses[str(first)] > 0:
            self._begun[str(first)] = form
        rest = Option(option.steps[1:])
        return rest.apply(site, current, {unit.name: form}).forms[unit.name] if rest.steps else form

    # Cuts: the consumer's stage comes last and tells the groups, which then says what of the producers' harm remains

    def _cut(self, site: Site, consumer: Unit, stats: Stats, weight: torch.Tensor) -> None:
        orders: dict[str, list[int]] = {}
        for step in self.levels[site.name].values():
            same = str({**vars(step), "keep": 0, "multiple": 0})
            assert stats.covariance is not None
            if same not in orders:
                orders[same] = step.order(weight, stats.covariance, site.axes[-1].groups)
            kept = step.kept(orders[same])
            if len(kept) < len(site.axes[-1].groups):
                self._level(site, consumer, stats, weight, step, kept)

    def _level(self, site: Site, consumer: Unit, stats: Stats, weight: torch.Tensor, step: SiteCutter, kept: list[int]) -> None:
        assert stats.covariance is not None
        columns = kept_rows(site.axes[-1], kept, consumer.shape[1])
        error = weight.clone()
        error[:, columns] -= step.refit(weight, stats.covariance, columns.nonzero()[:, 0])
        harm = HARMS[self.harm](consumer, error, stats, self.sensitivities.get(consumer.name), weight)
        harm = _UNKNOWN if harm is None else harm * self._left[str(step)].get(consumer.name, 1.0)
        self.found.cuts.setdefault(site.name, {})[str(step)] = Structural(kept, [], harm)
        energy = stats.covariance.diagonal() * weight.square().sum(0)
        self._scale(consumer.name, str(step), lambda text: float(energy[columns].sum() / energy.sum().clamp_min(1e-30)))
        for unit, axis in zip(site.units[:-1], site.axes[:-1]):
            mask = kept_rows(axis, kept, unit.shape[0])
            self._scale(unit.name, str(step), lambda text, unit=unit, mask=mask: self._share(unit.name, text, mask))  # type: ignore[misc]

    def _remaining(self, step: SiteCutter, stats: Mapping[str, Stats]) -> dict[str, float]:
        """What of each consumer's harm others cannot make up for."""
        consumers = [self.model.units[name] for name in stats if name in self.cuts and step.suits(self.cuts[name])]
        feels = {unit.name: self.sensitivities[unit.name].gradient for unit in consumers if unit.name in self.sensitivities}
        weight = lambda unit: self.model.matrix(unit).float()
        return self.ranks.first(f"{step}: {', '.join(stats)}", lambda: step.remaining(consumers, stats, weight, feels)) if consumers else {}

    def _share(self, unit: str, text: str, mask: torch.Tensor) -> float:
        """What of an option's harm lies in the rows that remain."""
        rows = self._rows.get(unit, {}).get(text)
        return float(mask.float().mean()) if rows is None else float(rows[mask].sum() / rows.sum().clamp_min(1e-30))

    def _scale(self, unit: str, level: str, share: Callable[[str], float]) -> None:
        for text, finding in self.found.units.get(unit, {}).items():
            if finding.harm is not None:
                finding.under[level] = finding.harm * share(text)

    # The sweep

    def _tell(self, events: Iterable[str]) -> None:
        self.found.events += [event for event in events if event not in self.found.events]

    def save(self) -> None:
        """Write what is done."""
        self._rows.clear()
        if self.directory is not None:
            write_json(self.directory / "harms.json", self.found.to_json())

    def needs(self) -> frozenset[Need]:
        """Union of what all options need."""
        tried = {option for options in self.options.values() for option in options.values()}
        found = frozenset().union(*(option.needs | option.weighed_by for option in tried))
        return found.union(*(step.needs for levels in self.levels.values() for step in levels.values()))

    def run(self, batches: Sequence[Batch], *, seed: int, pool: SpillPool, tick: Callable[[str], None] = lambda _: None) -> Findings:
        """Sweep and return what was found."""
        chain = ChainStore(self.directory / "chain", self.ranks) if self.directory is not None else None
        # Of several ranks the first has the harms of every block that all have kept: they are written before.
        self.found = self.ranks.first("harms kept", lambda: self.found)

        def on_block(name: str, outputs: dict) -> None:
            self._tell(sweep.chronicle.events)
            self.save()
            if chain is not None:
                chain.keep(name, outputs)
            tick(name)

        sweep = Sweep(
            self.model, batches, self.script, self.treat, needs=self.needs(), seed=seed, pool=pool, on_block=on_block,
            replayed=chain.replayed() if chain is not None else None, ranks=self.ranks,
        )  # fmt: skip
        sweep.finish()
        self._tell(sweep.chronicle.events)
        for unit in self.model.units.values():
            if unit.name in self.options and unit.name not in self.found.units:
                self._measured({unit.name: Stats()})
        for unit in self.model.units.values():
            if unit.name in self.sensitivities and (trace := self.sensitivities[unit.name].trace) is not None:
                self.found.facts.setdefault(unit.name, {})["trace"] = float(trace)
        self.save()
        return self.found
