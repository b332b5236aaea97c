"""The measurement as a run carries it out: gradients, the sweep, the spans; each continues where it was interrupted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from modicum.core.budget import readable
from modicum.core.errors import BudgetError
from modicum.core.files import write_json
from modicum.core.option import Option
from modicum.core.progress import Quiet
from modicum.core.unit import Unit
from modicum.data.splits import Batch, count_rows, each_row
from modicum.forms import Form
from modicum.judge.judge import Levels, PlanJudge, enough
from modicum.judge.plain import plains, try_all
from modicum.measure import felt, slopes
from modicum.measure.measurement import Keep, Measurement
from modicum.measure.scale import PLANS, learn
from modicum.measure.spans import measure_spans
from modicum.measure.subject import Subject
from modicum.sweep import Sensitivity, output_gradients
from modicum.sweep.coupling import shortened
from modicum.sweep.curvature import curvature_bytes, fisher_traces, top_eigenvalues
from modicum.sweep.ranks import LONE, Ranks
from modicum.sweep.spill import SpillPool
from modicum.table.exact import exact_bytes
from modicum.table.findings import Findings, Structural, prior_of
from modicum.table.menu import cutters, offered, spanners
from modicum.work.meter import Meter
from modicum.work.store import load_sensitivities, save_sensitivities

# Sequences that spans are judged on, and calibration batches their stand-ins are fitted to.
_SPAN_SEQUENCES, _SPAN_BATCHES = 8, 4
# Tokens for each column of the widest weight that options are compared on, of models without experts, which share them out; what is written is
# made on all.
_TOKENS = 32
# Top eigenvalues take many products of the Hessian: rows of text and tokens of each they are taken on.
_EIGENVALUE_ROWS, _EIGENVALUE_TOKENS = 2, 128


@dataclass
class Survey:
    """Measures a subject for some targets, keeping what is done in ``directory``; with ``plain`` also what plain options really lose.

    Where what was ``found`` has ``settled`` a choice already, no scales are learnt, and where spans of blocks are ``hopeless`` beside it for what the
    shortest cost, no longer ones are measured.
    """

    subject: Subject
    targets: Sequence[str]
    directory: Path
    pool: SpillPool
    meter: Meter
    progress: Quiet
    ranks: Ranks = LONE
    plain: bool = False
    settled: Callable[[Findings], bool] = lambda found: False
    hopeless: Callable[[Findings, float], bool] = lambda found, least: False

    def run(self, levels: Levels | None = None) -> Findings:
        """Everything there is to know for choosing. ``levels`` keeps every form that is made, to judge plans by; scales are learnt from some
        within the time to search.
        """
        self.directory.mkdir(exist_ok=True)
        path = self.directory / "findings.json"
        known = self.ranks.first("findings kept", lambda: json.loads(path.read_text()) if path.exists() else None)
        sensitivities = self._sensitivities()
        if felt.wanted(self.subject, self._options()):
            felt.set_by(self.subject.script, self.subject.model, sensitivities)
        told = self._slopes()
        if known is not None:
            return Findings.from_json(known)
        # What others made is kept where plans are judged.
        keep = levels.keep if self.ranks.leads and levels is not None else None if levels is None else _let_go
        found = self._swept(sensitivities, keep)
        found.events += told
        found = self.ranks.first("findings", lambda: self._completed(found, levels))
        write_json(path, found.to_json())
        return found

    def _options(self) -> Iterator[Option]:
        """All that may be chosen, and what becomes of it on weights whose inputs are not seen."""
        for target, menu in ((self.subject.target(name), self.subject.menu(name)) for name in self.targets):
            yield from menu.with_rules(target.sites())
            for site in (site for site in target.sites() if site.data_free):
                yield from offered(target, site, menu).values()

    def _slopes(self) -> list[str]:
        """See gradients by weight, where an option asks for them; what there is to tell."""
        options: dict[str, list[Option]] = {}
        for target, menu in ((self.subject.target(name), self.subject.menu(name)) for name in self.targets):
            if any(option.needs & slopes.ASKS for option in menu.with_rules(target.sites())):
                for site in target.sites():
                    for unit in site.units:
                        options.setdefault(unit.name, []).extend(offered(target, site, menu).values())
        batches = first_rows(self.subject.data.calibration, self.subject.settings.gradient_samples)
        places = [self.directory / "slopes.safetensors"]
        return slopes.take(self.subject, slopes.asked(options), batches, places, self.pool, self.meter, self.ranks)

    def _completed(self, found: Findings, levels: Levels | None) -> Findings:
        """With what is not told unit by unit."""
        found.raised = felt.told(self.subject.script.raised)
        self._facts(found)
        found.spans = self._spans(found)
        if levels is not None and self.subject.settings.search_time and not self.settled(found):
            self._scale(found, levels)
            if self.plain:
                self._plain(found, levels)
        return found

    def _plain(self, found: Findings, levels: Levels) -> None:
        """What plain options really lose, for every target."""
        settings, data = self.subject.settings, self.subject.data
        self.progress.start("plain options", len(self.targets))
        with self.meter.stage("plain options"):
            for name in self.targets:
                sizing = self.subject.sizing(name)
                table = sizing.table(found)
                judge = PlanJudge(table, levels.serving(sizing, found), data.validation)
                picks = plains(sizing.target, sizing.menu, table)
                sizes = {text: exact_bytes(sizing, table, one, found) for text, one in picks.items()}
                found.plain[name] = try_all(picks, sizes, judge, settings.seed, settings.search_time)
                self.progress.step()

    def _scale(self, found: Findings, levels: Levels) -> None:
        """Learn what each kind of option really costs, in the table that ``levels`` serves."""
        levels.findings = found
        table = levels.sizing.table(found)
        judge = PlanJudge(table, levels, self.subject.data.validation)
        self.progress.start("scale", PLANS)
        with self.meter.stage("scale"):
            settings = self.subject.settings
            on_top, found.rank = learn(table, judge, settings.seed, settings.search_time, self.progress.step)
        found.scales = {kind: prior_of(kind) * factor for kind, factor in on_top.items()}

    def _sensitivities(self) -> dict[str, Sensitivity]:
        settings = self.subject.settings
        if settings.harm == "error":
            return {}
        path = self.directory / "sensitivities.safetensors"
        if all(self.ranks.gather("gradients kept", path.exists())):
            return load_sensitivities(path)
        model, batches = self.subject.model, first_rows(self.subject.data.calibration, settings.gradient_samples)
        self.progress.start("gradients", len(batches))
        with self.meter.stage("gradients"):
            found = output_gradients(
                self.subject.felt, batches, self.subject.script, settings.seed, covariance=settings.harm == "covariance",
                widest=felt.widest(self.subject), pool=self.pool, ranks=self.ranks, tick=self.progress.step,
            )  # fmt: skip
            if settings.harm == "hessian":
                outputs = self.subject.script.outputs
                traces = self.ranks.first(
                    "traces", lambda: fisher_traces(model, _single_rows(batches), seed=settings.seed, outputs=outputs)
                )
                found = {name: replace(one, hessian=traces.get(name)) for name, one in found.items()}
        save_sensitivities(path, found)
        return found

    def _swept(self, sensitivities: dict[str, Sensitivity], keep: Keep | None) -> Findings:
        subject = self.subject
        targets, menus = [subject.target(name) for name in self.targets], [subject.menu(name) for name in self.targets]
        cuts = subject.cuts if any(cutters(menu) for menu in menus) else {}
        measurement = Measurement(
            subject.model, subject.script, targets, menus, sensitivities, self.directory, cuts=cuts, harm=subject.settings.harm,
            keep=keep, ranks=self.ranks,
        )  # fmt: skip
        self.progress.start("measure", len(subject.model.blocks))
        with self.meter.stage("measure"):
            return measurement.run(
                _compared_on(subject), seed=subject.settings.seed, pool=self.pool, tick=lambda _: self.progress.step()
            )  # fmt: skip

    def _facts(self, found: Findings) -> None:
        """Exact curvature, where it was asked for."""
        if not self.subject.settings.curvature:
            return
        model, seed, outputs = self.subject.model, self.subject.settings.seed, self.subject.script.outputs
        rows = _single_rows(first_rows(self.subject.data.calibration, self.subject.settings.gradient_samples))
        self._check_curvature(rows[0])
        self.progress.start("curvature", 2)
        with self.meter.stage("curvature"):
            for name, value in fisher_traces(model, rows, seed=seed, outputs=outputs).items():
                found.facts.setdefault(name, {})["trace"] = value
            self.progress.step()
            for name, value in top_eigenvalues(
                model, [shortened(row, _EIGENVALUE_TOKENS) for row in rows[:_EIGENVALUE_ROWS]], seed=seed, outputs=outputs
            ).items():
                found.facts.setdefault(name, {})["eigenvalue"] = value
            self.progress.step()

    def _check_curvature(self, row: Batch) -> None:
        """Raise ``BudgetError`` where the model and one row's graph are more than ``--ram`` allows."""
        needed, ram = curvature_bytes(self.subject.model, row), self.subject.settings.ram
        if ram is not None and needed > ram:
            raise BudgetError(f"--curvature: needs the model in memory, {readable(needed)}; --ram allows {readable(ram)}. Leave it out.")

    def _spans(self, findings: Findings) -> dict[str, Structural]:
        subject = self.subject
        steps = list({str(step): step for name in self.targets for step in spanners(subject.menu(name))}.values())
        if not steps:
            return {}
        path = self.directory / "spans.json"
        known = {text: Structural(**found) for text, found in json.loads(path.read_text()).items()} if path.exists() else {}
        self.progress.start("spans", 1)
        with self.meter.stage("spans"):
            return measure_spans(
                subject.model, subject.script, steps, subject.data.calibration[:_SPAN_BATCHES],
                first_rows(subject.data.calibration, _SPAN_SEQUENCES), self.pool, subject.settings.seed, known,
                lambda found: write_json(path, {text: vars(span) for text, span in found.items()}),
                lambda least: self.hopeless(findings, least),
            )  # fmt: skip


def _compared_on(subject: Subject) -> Sequence[Batch]:
    """The calibration batches that tell options apart."""
    units, batches = subject.model.units.values(), subject.data.calibration
    if any(unit.kind == "expert" for unit in units):
        return batches
    return enough(batches, _TOKENS * max((unit.shape[1] for unit in units if unit.kind != "embedding"), default=0))


def _let_go(unit: Unit, option: Option, cut: str, form: Form) -> None:
    """Keep no form."""


def _single_rows(batches: Sequence[Batch]) -> list[Batch]:
    """Batches of one row each: a graph of two derivatives is large."""
    return [row for batch in batches for row in each_row(batch)]


def first_rows(batches: Sequence[Batch], rows: int) -> list[Batch]:
    """The first batches that together have at least ``rows`` rows."""
    found, count = [], 0
    for batch in batches:
        found.append(batch)
        count += count_rows(batch)
        if count >= rows:
            break
    return found
