"""The choice of a run: measured or read, judged where there is time, and held against plain options once it is made."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from modicum.allocate import JUDGED
from modicum.allocate.integer_program import integer_program
from modicum.core.budget import readable
from modicum.core.files import write_json
from modicum.core.log import LOG
from modicum.core.plan import Picks, Plan, Table
from modicum.fit import explicit
from modicum.fit.along import along
from modicum.fit.choose import Chooser
from modicum.fit.kept_cache import settle_cache
from modicum.fit.scene import Scene
from modicum.judge.degree import nearly_none
from modicum.judge.judge import Levels, PlanJudge, too_slow
from modicum.judge.plain import SEQUENCES
from modicum.measure.settings import Settings
from modicum.measure.survey import Survey
from modicum.numerics.interval import interval
from modicum.sweep.spill import SpillPool
from modicum.table.findings import Findings
from modicum.table.waste import beyond
from modicum.work.meter import Meter


@dataclass
class Chosen:
    """What was chosen and from what, how it was searched for, and all events so far."""

    plan: Plan
    table: Table | None = None
    picks: Picks = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)
    search: dict[str, Any] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)
    beyond: dict[str, float] = field(
        default_factory=dict
    )  # by site, bits per weight beyond the Gaussian reference on the original's inputs
    frontier: dict[str, Any] = field(default_factory=dict)


class Choosing:
    """Makes the choice of a run in its folder ``partial``; ``events`` are those so far, ``chooser`` what divides a budget."""

    def __init__(
        self, scene: Scene, partial: Path, pool: SpillPool, meter: Meter, events: Sequence[str], chooser: Chooser | None = None
    ):  # fmt: skip
        self.scene, self.ranks, self.partial, self.pool, self.meter = scene, scene.ranks, partial, pool, meter
        self.events = list(events)
        self.kept = partial / "choice.json"
        self.search: dict[str, Any] = {}
        self.findings = Findings()
        self.chooser = chooser
        self._judge: PlanJudge | None = None

    def run(self) -> Chosen:
        """The plan: as it was given, of one option everywhere, or chosen within the budget."""
        scene = self.scene
        if scene.request.plan is not None:
            return Chosen(scene.request.plan, events=self.events)
        if scene.method is not None:
            plan, events = explicit.everywhere(scene, scene.method)
            return Chosen(plan, events=self.events + events)
        chooser = self.chooser
        assert chooser is not None
        if (whole := self.ranks.first("whole", lambda: self._whole(chooser))) is not None:
            return whole
        known = self.ranks.first("choice kept", lambda: json.loads(self.kept.read_text()) if self.kept.exists() else None)
        self.findings, levels = self._findings(chooser, known is None)
        return self.ranks.first("plan", lambda: self._chosen(chooser, levels, known))

    def _whole(self, chooser: Chooser) -> Chosen | None:
        """The model as it is, where all budgets have room for it: nothing need be measured to tell."""
        request = self.scene.request
        if self.scene.measured is not None or request.uniform or request.kv == "auto" or chooser.budget.loss is not None:
            return None
        known, findings, limits = chooser.table(None), Findings(), chooser.limits()
        if (picks := chooser.whole(known, findings, limits)) is None:
            return None
        if self.scene.subject.taking is not None:
            self.events.append(f"activations {request.activations}: nothing is rounded, the budget has room for the model as it is.")
        table, none = replace(known, choices={site: [known.choices[site][index]] for site, index in picks.items()}), dict.fromkeys(picks, 0)
        told = {"skipped": "not needed, the budget has room for the model as it is"}
        return Chosen(chooser.sizing.plan(table, none, findings), table, none, limits, told, self.events)

    def _chosen(self, chooser: Chooser, levels: Levels | None, known: dict[str, Any] | None) -> Chosen:
        """The choice, made now or as it was ``known``, and the table it was made from."""
        if self.scene.request.kv == "auto":
            self.events.append(settle_cache(chooser, self.findings))
            self._judge = None
        table, limits, findings = chooser.table(self.findings), chooser.limits(), self.findings
        if known is not None:
            picks, self.search = known["picks"], known["search"]
            self.events += [event for event in known["events"] if event not in self.events]
        else:
            # What no scales were learnt for, before an interruption too, was settled without; of a measurement nobody asked.
            settled = levels is not None and self.scene.measured is None and not findings.rank and self._settled(levels, findings)
            judge = self._judge if settled else self._judging(levels, findings) if levels is not None else None
            with self.meter.stage("choose", 1):
                picks = chooser.choose(table, findings, judge, searching=not settled)
            size, harm = chooser.exact_bytes(table, picks, findings), table.forecast(picks)
            self.meter.progress.say(f"chosen: {readable(size)}, forecast to lose {harm:.2g}")
            self.events += chooser.report.pop("events", [])
            self.events += chooser.forced(table, picks)
            told = [f"{name} {value}" for name, value in chooser.report.items() if isinstance(value, int | float | str)]
            LOG.info("chosen by %s: %s", self.scene.request.allocator, ", ".join(told))
            self.search |= chooser.report | {"harm": self.scene.request.harm, "rank": findings.rank}
            self._keep(picks, self.events)
        return self._told(chooser.sizing.plan(table, picks, findings), table, picks, limits, list(self.events))

    def _told(self, plan: Plan, table: Table, picks: Picks, limits: dict[str, float], events: list[str]) -> Chosen:
        """A choice with what is told of it: how far it is from the reference, and what other sizes would give."""
        units = {site.name: site.units for site in self.scene.sites}
        reference = lambda site, text: beyond(self.findings.units, units[site], text) if site in units else None
        waste = {site: reference(site, table.choices[site][index].option) for site, index in picks.items()}
        known = {site: found for site, found in waste.items() if found is not None}
        return Chosen(plan, table, picks, limits, self.search, events, known, along(table, picks, reference))

    def _keep(self, picks: Picks, events: Sequence[str]) -> None:
        """A search that time ends would not end alike again: what it chose is kept."""
        write_json(self.kept, {"picks": picks, "search": self.search, "events": list(events)})

    def surpassed(self, chosen: Chosen, lost: Callable[[int], Sequence[float]]) -> Chosen | None:
        """The plain option that was measured to lose less than what was made, which ``lost(n)`` on ``n`` rows; mostly none.

        How the best of them compares is noted in the choice's ``search`` either way.
        """
        chooser, table = self.chooser, chosen.table
        if table is None or chooser is None or "plain" in chosen.search:
            return None
        with self.meter.stage("choose"):
            rival = chooser.surpassed(table, self.findings, chosen.picks, lost)
        chosen.search |= {name: value for name, value in chooser.report.items() if name == "plain"}
        if rival is None:
            return None
        self.search = chosen.search
        events = [*chosen.events, *chooser.report["events"], *chooser.forced(table, rival.picks)]
        self._keep(rival.picks, events)
        return self._told(chooser.sizing.plan(table, rival.picks, self.findings), table, rival.picks, chosen.limits, events)

    def _findings(self, chooser: Chooser, choosing: bool) -> tuple[Findings, Levels | None]:
        """What is known for choosing: measured before or now; and the forms to judge by, where candidates are judged."""
        scene, measured, levels = self.scene, self.scene.measured, None
        known = measured.findings if measured is not None else Findings()
        if choosing and self.ranks.first("search", self._searching):
            data, seed = scene.data, scene.request.seed
            levels = Levels(self.partial / "levels", chooser.sizing, known, data.calibration, self.pool, seed, data.validation)
        if measured is not None:
            self.events += [event for event in known.events if event not in self.events]
            if missing := measured.missing(scene.target, chooser.sizing.menu):
                self.events.append(
                    f"menu: of the options of this version {len(missing)} were not measured, such as {missing[0]!r}, and are left out. "
                    "Measure again to choose from them."
                )
            return known, levels
        survey = Survey(
            scene.subject, [scene.target.name], self.partial / "measure", self.pool, self.meter, self.meter.progress, scene.ranks,
            settled=lambda found: levels is not None and self._settled(levels, found), hopeless=self._hopeless,
        )  # fmt: skip
        findings = survey.run(levels)
        self.events += findings.events
        if levels is not None:
            levels.findings = findings
        return findings, levels

    def _hopeless(self, findings: Findings, least: float) -> bool:
        """Whether leaving out any block loses so much that no choice within the budget has it, though its forecast fall short by half."""
        if self.chooser is None or self.scene.subject.most is None:
            return False
        table, limits = self.chooser.sizing.table(findings), self.chooser.limits()
        picks = integer_program(table, limits, gap=1e-3)
        if hopeless := table.fits(picks, limits) and 2 * table.harm(picks) < least:
            LOG.info(
                "depth: leaving out one block costs %.3g, a choice without %.3g; longer spans are not measured", least, table.harm(picks)
            )
        return hopeless

    def _judging(self, levels: Levels, findings: Findings) -> PlanJudge:
        levels.findings = findings
        assert self.chooser is not None
        scene = self.scene
        return PlanJudge(self.chooser.table(findings), levels, scene.data.validation, scene.model.is_causal, scene.subject.original)

    def _settled(self, levels: Levels, findings: Findings) -> bool:
        """Whether what the forecast alone chooses loses so little that there is nothing to search for; told for the receipt."""
        request, chooser = self.scene.request, self.chooser
        asked = request.allocator != "auto" or request.search_time > Settings.search_time
        if chooser is None or asked or chooser.budget.loss is not None:
            return False
        if self._judge is None:
            self._judge = self._judging(levels, findings)
            table = self._judge.table
            chooser.check(table)
            lost = self._judge(chooser.foretold(table, findings), SEQUENCES)
            if interval(lost.tolist(), request.seed)[2] < (most := nearly_none(self._judge.metric)):
                found = f"{lost.mean():.2g} on {len(lost)} validation sequences"
                self.search = {"skipped": f"not needed, what the forecast chooses loses {found}; near-lossless is below {most:g}"}
        return "skipped" in self.search

    def _searching(self) -> bool:
        """Whether candidates are judged: asked for, and fast enough. A loss budget cannot do without."""
        scene, request = self.scene, self.scene.request
        if request.budget is not None and request.budget.loss is not None:
            return True
        judged = request.allocator in JUDGED
        # What an allocator that asks no judge chose from a measurement is held against plain options once it is made.
        if not request.search_time or (scene.measured is not None and not judged):
            return False
        reason = too_slow(scene.model, scene.script, scene.data.validation[0], request.search_time, self.pool)
        if not reason:
            return True
        if judged:
            self.search = {"skipped": reason}
        stands = "the integer program's answer stands" if judged else "what plain options would lose is a forecast"
        self.events.append(f"search: left out, {reason}; {stands}. Pass a longer --search-time.")
        return False
