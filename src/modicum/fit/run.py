"""One run of ``fit``, stage by stage."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from modicum.allocate import JUDGED
from modicum.core.budget import Budget, every, readable
from modicum.core.errors import BudgetError, ModelError, SettingError, near
from modicum.core.method import Change, Need
from modicum.core.option import Option
from modicum.core.plan import Picks, Plan, Table
from modicum.core.progress import Quiet, ticked
from modicum.core.unit import Site
from modicum.data.splits import Batch, placed
from modicum.drop._family import Dropper, SiteCutter, cut_sites
from modicum.export import load
from modicum.export._family import Layout
from modicum.fit.account import build_receipt
from modicum.fit.advice import advice
from modicum.fit.assemble import Assembly
from modicum.fit.choose import Chooser
from modicum.fit.forecast import forecast
from modicum.fit.request import Request
from modicum.fit.verdict import surprise, verdict
from modicum.judge.judge import Levels, PlanJudge, first, too_slow
from modicum.judge.quality import RUINED, Quality, RuinedError, compare, plain, streamed
from modicum.measure.measured import Measured
from modicum.measure.settings import common
from modicum.measure.subject import Subject
from modicum.measure.survey import Survey
from modicum.models.copying import copied
from modicum.models.evaluating import evaluating
from modicum.models.model import Model
from modicum.models.quiet import hushed
from modicum.runtime.memory import whole_model
from modicum.sweep.ranks import LONE, Ranks
from modicum.table.findings import DEPTH, Findings
from modicum.table.menu import misfit, unheld
from modicum.work.meter import Meter
from modicum.work.store import FormStore, load_change, save_change, write_json
from modicum.work.workdir import WorkDir, beside, read_from, temporary


@dataclass
class Result:
    """What a run made: the directory, its receipt and plan, and the model itself."""

    out: Path
    receipt: dict[str, Any]
    plan: Plan
    source: Model
    temporary: Path | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.temporary is not None:
            weakref.finalize(self, shutil.rmtree, self.temporary, ignore_errors=True)

    @cached_property
    def model(self) -> nn.Module:
        """The compressed model as a working module, loaded from the files that were written."""
        return load(self.out, into=None if self.source.config is not None else copied(self.source.module, apart=True))


def fit(
    model: str | Path | nn.Module | Model | None = None, budget: str | Budget | None = None, *, size: str | int | None = None,
    bpw: float | str | None = None, params: str | float | None = None, loss: str | float | None = None, memory: str | int | None = None,
    speed: str | float | None = None, latency: str | float | None = None, method: str | Option | None = None,
    plan: str | Path | Plan | None = None, measured: str | Path | Measured | None = None, data: Any = None, out: str | Path | None = None,
    menu: Iterable[str | Option] | str | None = None, ram: str | int | None = None, keep: Iterable[str] = (), progress: Quiet | None = None,
    ranks: Ranks = LONE, **settings: Any,
) -> Result:  # fmt: skip
    """Give the best ``model`` that fits ``budget``, in files that the target's runtime loads, with a receipt.

    ``model``: ``demo``, a directory, a Hugging Face id or a module. ``budget`` (``4.5MB``, ``4.5bpw``, or a ``Budget``), ``size``, ``bpw``,
    ``params`` (``60%`` of stored values), ``loss`` (``1%`` more perplexity), ``memory`` with ``context`` and ``batch``, ``speed`` (``1.5x``) and
    ``latency`` (``20ms``): those given hold together. Instead of budgets ``method`` (an option applied everywhere) or ``plan``. ``measured``: a
    directory that ``measure`` wrote, which then is not measured again; its model and data are taken. ``data``: a path to text, or any
    iterable of batches; without it the shipped text. ``out``: the directory to write; without it a temporary one that lives as long as the
    result. ``ranks``: the processes that call this together, the first of which writes (``modicum.sweep.ranks.joined``). Other settings as on
    the command line: see ``Request``. Raises ``ModicumError`` kinds; nothing is left behind but
    ``OUT.partial`` (``OUT.rank-N.partial`` of the other ranks), from which the same call continues.
    """
    parsed = Budget.parse(budget) if isinstance(budget, str) else budget
    words = Budget.of(size=size, bpw=bpw, params=params, loss=loss, memory=memory, speed=speed, latency=latency)
    known = Measured.read(measured) if isinstance(measured, str | Path) else measured
    if known is not None:
        settings, menu, data, model = known.adopt(settings, menu, data, model)
    if model is None:
        raise SettingError("fit: a model must be given, none came. Pass a directory, an id, demo, or a measurement with measured=.")
    request = Request(
        budget=every([parsed, words]),
        method=Option.parse(method) if isinstance(method, str) else method,
        plan=plan if isinstance(plan, Plan) or plan is None else Plan.read(Path(plan)),
        **common(menu=menu, ram=ram, data=data, out=out, keep=keep, **settings),
    )  # fmt: skip
    batches = None if data is None or isinstance(data, str | Path) else data
    place = temporary() if request.out is None and not request.dry_run else None
    try:
        with evaluating(model if isinstance(model, nn.Module) else None):
            return Run(model, request, batches, progress or Quiet(), known, ranks, place).run()
    except BaseException:
        if place is not None:
            shutil.rmtree(place, ignore_errors=True)
        raise


class Run:
    """One run, from the request to the files."""

    def __init__(
        self, source: str | Path | nn.Module | Model, request: Request, batches: Any, progress: Quiet, measured: Measured | None = None,
        ranks: Ranks = LONE, temporary: Path | None = None,
    ):  # fmt: skip
        self.request, self.meter, self.progress, self.measured, self.ranks = request, Meter(), progress, measured, ranks
        self.temporary = temporary
        self.out = beside(request.out or (self.temporary or Path()) / "model", ranks.rank)
        self.place = WorkDir(self.out, "modicum-run", request.overwrite, read_from(source, measured, request.data))
        if request.budget is not None:
            self._check_out()
        with self.meter.stage("open"):
            self.subject = Subject.open(source, request, batches) if measured is None else measured.open(source, request)
            self.model, self.data, self.script = self.subject.model, self.subject.data, self.subject.script
            self.subject.check_kept()
            self._check_device()
            ranks.share(self.data.calibration)
            self.target_name = self._target_name()
            self.target = self.subject.target(self.target_name)
            if measured is not None:
                measured.check(self.subject, self.target_name if request.budget is not None else None)
            self.sites = self.target.sites()
        self.pool = self.subject.plan_memory(self._options(), ranks)
        self.events: list[str] = list(self.model.notes)
        self.change = Change()
        self.search: dict[str, Any] = {}
        self.picks: Picks = {}
        self.limits: dict[str, float] = {}
        self.chooser: Chooser | None = None
        self.findings = Findings()
        self._chosen_events: list[str] = []
        self.verdict = ""

    def _options(self) -> Iterable[Option]:
        """Every option that the run may apply."""
        if self.request.plan is not None:
            return [Option.parse(text) for text in self.request.plan.options.values()]
        return self.subject.menu(self.target_name) if self.request.method is None else [self.request.method]

    def _check_out(self) -> None:
        if self.request.out is not None and not self.request.dry_run:
            self.ranks.first("out", self.place.check)

    def _check_device(self) -> None:
        """Raise ``SettingError`` for what is done by processors alone."""
        budget, device = self.request.budget, self.model.weights.device
        if device.type == "cpu":
            return
        if self.request.workers != "1":
            raise SettingError(
                f"workers: must be 1 on --device {device}, which they would share, got {self.request.workers}. Leave it out."
            )
        if budget is not None and (budget.speed or budget.latency):
            raise SettingError(f"budget {budget}: is timed on the processor, cannot be with --device {device}. Use --device cpu.")

    def _target_name(self) -> str:
        plan = self.request.plan
        if plan is not None and self.request.target in (None, plan.target):
            return plan.target
        return self.request.target or self.subject.default_target

    # The stages

    def run(self) -> Result:
        """Do it all, or with ``dry_run`` only say what would be done."""
        if self.request.dry_run:
            return Result(self.out, forecast(self), Plan(self.target_name), self.model)
        if self.request.budget is not None:
            chooser = Chooser(self.subject, self.target_name, self.request)
            self.ranks.first("budget", lambda: chooser.check(chooser.table(None)))
        else:
            self._explicit()
            self._check_out()
        with self.place.held():
            return self._held()

    def _held(self) -> Result:
        fingerprint = self.ranks.agreed(self.request.fingerprint(self.model.hash(), self.data.hashes))
        partial = self.pool.directory = self.place.begin(fingerprint)
        if self.ranks.leads:
            self.place.forget_ranks(self.ranks.count)
        plan, table = self._plan(partial)
        forms = self._made(plan, partial)
        surpassed = self.ranks.first("surpassed", lambda: self._surpassed(table, forms, partial))
        if surpassed is not None:
            plan, self.events = surpassed
            forms = self._made(plan, partial)
        receipt, out = self.ranks.first("receipt", lambda: self._written(partial, plan, table, forms))
        if not self.ranks.leads:
            self.place.discard()
        return Result(out, receipt, plan, self.model, self.temporary)

    def _made(self, plan: Plan, partial: Path) -> FormStore:
        """The forms of a plan, in a folder that belongs to it."""
        plan.write(partial / "plan.json")
        shutil.rmtree(partial / "levels", ignore_errors=True)
        place = partial / self.ranks.first("place", lambda: "plain" if self.search.get("plain", {}).get("taken") else "assembly")
        place.mkdir(exist_ok=True)
        change = self.change = self.ranks.first("change", lambda: self._reshaped(plan, place / "change.safetensors"))
        dropped = frozenset(change.dropped)
        options = {name: option for name, option in self._unit_options(plan).items() if not self.script.home(name, dropped)}
        assembly = Assembly(
            self.model, self.script, options, place, start=change.forms, biases=change.biases, dropped=dropped, ranks=self.ranks,
        )  # fmt: skip
        self.progress.start("assemble", len(self.model.blocks))
        with self.meter.stage("assemble"):
            forms = assembly.run(self.data.calibration, seed=self.request.seed, pool=self.pool, tick=lambda _: self.progress.step())
        self.events += assembly.events
        return forms

    def _surpassed(self, table: Table | None, forms: FormStore, partial: Path) -> tuple[Plan, list[str]] | None:
        """The plan of a plain option that was measured to lose less than what was made, and the events that then hold; mostly nothing."""
        if table is None or self.chooser is None or "plain" in self.search:
            return None
        with self.meter.stage("choose"):
            rival = self.chooser.surpassed(table, self.findings, self.picks, lambda count: self._lost(forms, count))
        self.search |= {name: value for name, value in self.chooser.report.items() if name == "plain"}
        if rival is None:
            return None
        self.picks = rival.picks
        events = [*self._chosen_events, *self.chooser.report["events"], *self.chooser.forced(table, self.picks)]
        write_json(partial / "choice.json", {"picks": self.picks, "search": self.search, "events": events})
        return self.chooser.sizing.plan(table, self.picks, self.findings), events

    def _lost(self, forms: FormStore, count: int) -> list[float]:
        """What the compressed model loses on the first rows that choices are judged by."""
        batches = first(self.data.validation, count, self.script.whole)
        original = streamed(self.model.twin(), batches, self.script, pool=self.pool)
        try:
            return compare(original, self._candidate(batches, forms), batches, False, self.script.outputs).by_row(batches)
        except RuinedError:
            return [RUINED] * count

    def _written(self, partial: Path, plan: Plan, table: Table | None, forms: FormStore) -> tuple[dict[str, Any], Path]:
        """Files and receipt, verified and in place; the receipt, and where they are."""
        self._refuse_fallbacks()
        change, dropped = self.change, frozenset(self.change.dropped)
        final = partial / "final"
        shutil.rmtree(final, ignore_errors=True)
        final.mkdir()
        self.progress.start("export", 1)
        with self.meter.stage("export"):
            layout = self.target.layout(forms, change.biases, dropped)
            layout.write(final)
            self.target.finish(final, forms, dropped)
        plan.write(final / "plan.json")
        receipt = self._receipt(plan, table, forms, layout, final)
        write_json(final / "receipt.json", receipt)
        from modicum.receipt import report

        (final / "report.html").write_text(report(receipt), encoding="utf-8")
        self.place.finish(final)
        return receipt, self.out

    # Choosing

    def _explicit(self) -> None:
        """Check a method or a plan against the sites before any work."""
        self._check_wide()
        if self.request.plan is not None:
            known = {site.name: site for site in self.sites} | {unit.name: unit for unit in self.model.units.values()}
            for site, text in self.request.plan.options.items():
                option = Option.parse(text)
                if site == DEPTH:
                    self._whole(option)
                elif _is_cut(option):
                    if site not in self.subject.cuts:
                        raise SettingError(f"plan: site {site!r} is no coupled cut of this model. {near(site, self.subject.cuts)}")
                elif site not in known:
                    raise SettingError(f"plan: site {site!r} is not in this model for target {self.target_name}. {near(site, known)}")
                elif self._whole(option, rest=True) is not None:
                    raise SettingError(f"plan: {text!r} works on the whole model, not on {site}. Give it to the site {DEPTH!r}.")
            self._check_cuts(self.request.plan)
            self._unit_options(self.request.plan)
        elif (
            self.request.method is not None
            and (self._whole(self.request.method, rest=True) is None)
            and not any(self.target.adapt(site, self.request.method) for site in self.sites)
        ):
            group = misfit(self.target, self.sites, self.request.method)
            why = group or unheld(self.target)
            raise SettingError(
                f"method {str(self.request.method)!r}: target {self.target_name} can hold it on no layer of this model"
                f"{f', {why}' if why else ''}. {'Or pass' if group else 'Pass'} --target modicum."
            )

    def _check_wide(self) -> None:
        """Raise ``SettingError`` for a cut by a covariance that is not measured whole."""
        plan, method = self.request.plan, self.request.method
        texts = plan.options if plan is not None else dict.fromkeys(self.subject.cuts, str(method)) if self.script.together else {}
        for name, text in texts.items():
            steps = [step for step in Option.parse(text).steps if isinstance(step, SiteCutter) and Need.COVARIANCE in step.needs]
            consumer = self.subject.cuts[name].axes[-1].unit if steps and name in self.subject.cuts else ""
            if consumer in self.script.together:
                raise SettingError(
                    f"{steps[0]}: cuts {name} by the whole covariance of {consumer}'s inputs, which does not fit in memory. Keep that cut out of "
                    "the plan, or allow more memory."
                )

    def _check_cuts(self, plan: Plan) -> None:
        for site, kept in plan.cuts.items():
            groups = len(self.subject.cuts[site].axes[-1].groups) if site in self.subject.cuts else 0
            nothing = not kept and not site.endswith(":experts")  # an expert may be left out whole
            if site not in plan.options or nothing or not set(kept) <= set(range(groups)):
                raise SettingError(f"plan: cuts of {site!r} must list groups from 0 to {groups - 1} of a cut that has an option.")

    def _whole(self, option: Option, *, rest: bool = False) -> Option | None:
        """The step over the whole model an option begins with. Raises ``SettingError`` where such a step stands elsewhere."""
        if not option.steps or not isinstance(option.steps[0], Dropper):
            if any(isinstance(step, Dropper) for step in option.steps) or not rest:
                raise SettingError(f"option {str(option)!r}: a step over the whole model must come first and alone.")
            return None
        if any(isinstance(step, Dropper) for step in option.steps[1:]) or (len(option.steps) > 1 and not rest):
            raise SettingError(f"option {str(option)!r}: only one step may drop parts of the model, and it comes first.")
        return Option(option.steps[:1])

    def _plan(self, partial: Path) -> tuple[Plan, Table | None]:
        if self.request.plan is not None:
            return self.request.plan, None
        if self.request.method is not None:
            return self._applied(self.request.method), None
        chooser = self.chooser = Chooser(self.subject, self.target_name, self.request)
        path = partial / "choice.json"
        known = self.ranks.first("choice kept", lambda: json.loads(path.read_text()) if path.exists() else None)
        findings, levels = self._findings(chooser, partial, known is None)
        self.findings = findings
        return self.ranks.first("plan", lambda: self._chosen(chooser, findings, levels, path, known))

    def _chosen(
        self, chooser: Chooser, findings: Findings, levels: Levels | None, path: Path, known: dict[str, Any] | None
    ) -> tuple[Plan, Table]:
        """The choice, made now or as it was ``known``, and the table it was made from."""
        table, self.limits = chooser.table(findings), chooser.limits()
        if known is not None:
            self.picks, self.search = known["picks"], known["search"]
            self.events += [event for event in known["events"] if event not in self.events]
        else:
            judge = PlanJudge(table, levels, self.data.validation, self.model.is_causal) if levels is not None else None
            self.progress.start("choose", 1)
            with self.meter.stage("choose"):
                self.picks = chooser.choose(table, findings, judge)
            self.events += chooser.report.pop("events", [])
            self.events += chooser.forced(table, self.picks)
            self.search |= chooser.report | {"harm": self.request.harm, "rank": findings.rank}
            # A search that time ends would not end alike again: what it chose is kept.
            write_json(path, {"picks": self.picks, "search": self.search, "events": self.events})
        self._chosen_events = list(self.events)
        return chooser.sizing.plan(table, self.picks, findings), table

    def _applied(self, method: Option) -> Plan:
        """The plan of one option everywhere."""
        plan = Plan(self.target_name)
        if (whole := self._whole(method, rest=True)) is not None:
            plan.options[DEPTH] = str(whole)
            method = Option(method.steps[1:])
        for site in self.sites:
            fitted = self.target.adapt(site, method)
            if method.steps and fitted is not None and not self.subject.kept(site):
                plan.options[site.name] = str(fitted)
        if why := misfit(self.target, self.sites, method):
            self.events.append(f"method {str(method)!r}: some layers stay as they are, {why}.")
        return plan

    def _findings(self, chooser: Chooser, partial: Path, choosing: bool) -> tuple[Findings, Levels | None]:
        """What is known for choosing: measured before or now; and the forms to judge by, where candidates are judged."""
        known = self.measured.findings if self.measured is not None else Findings()
        levels = None
        if choosing and self.ranks.first("search", self._searching):
            levels = Levels(partial / "levels", chooser.sizing, known, self.data.calibration, self.pool, self.request.seed)
        if self.measured is not None:
            self.events += [event for event in known.events if event not in self.events]
            if missing := self.measured.missing(self.target, chooser.sizing.menu):
                self.events.append(
                    f"menu: of the options of this version {len(missing)} were not measured, such as {missing[0]!r}, and are left out. "
                    "Measure again to choose from them."
                )
            return known, levels
        survey = Survey(self.subject, [self.target_name], partial / "measure", self.pool, self.meter, self.progress, self.ranks)
        findings = survey.run(levels)
        self.events += findings.events
        if levels is not None:
            levels.findings = findings
        return findings, levels

    def _searching(self) -> bool:
        """Whether candidates are judged: asked for, and fast enough. A loss budget cannot do without."""
        budget, seconds = self.request.budget, self.request.search_time
        if budget is not None and budget.loss is not None:
            return True
        judged = self.request.allocator in JUDGED
        # What an allocator that asks no judge chose from a measurement is held against plain options once it is made.
        if not seconds or (self.measured is not None and not judged):
            return False
        reason = too_slow(self.model, self.script, self.data.validation[0], seconds, self.pool)
        if not reason:
            return True
        if judged:
            self.search = {"skipped": reason}
        stands = "the integer program's answer stands" if judged else "what plain options would lose is a forecast"
        self.events.append(f"search: left out, {reason}; {stands}. Pass a longer --search-time.")
        return False

    def _reshaped(self, plan: Plan, path: Path) -> Change:
        """The structural change a plan asks for, made now or kept at ``path`` before an interruption."""
        if path.exists():
            change = load_change(path)
        else:
            change = self._structural(plan)
            if change.forms or change.dropped:
                save_change(path, change)
        self.events += change.events
        return change

    def _structural(self, plan: Plan) -> Change:
        """Of the whole model's depth first, then of coupled cuts."""
        change = Change()
        if DEPTH in plan.options:
            (step,) = Option.parse(plan.options[DEPTH]).steps
            assert isinstance(step, Dropper)
            self.progress.start("survey", 1)
            with self.meter.stage("survey"):
                change = step.reshape(self.model, self.script, self.data.calibration, self.pool, self.request.seed)
            self._hold(str(step), change)
        wanted = {}
        for name, text in plan.options.items():
            if name in plan.cuts or (name != DEPTH and _is_cut(Option.parse(text))):
                (cutter,) = Option.parse(text).steps
                assert isinstance(cutter, SiteCutter)
                wanted[name] = (self.subject.cuts[name], cutter, plan.cuts.get(name))
        if wanted:
            self.progress.start("cut", 1)
            with self.meter.stage("cut"):
                cut = cut_sites(
                    self.model, self.script, self.data.calibration, self.pool, wanted, start=change.forms, seed=self.request.seed
                )  # fmt: skip
            change.forms |= cut.forms
            change.events += cut.events
            self._hold("the cuts", change)
        return change

    def _hold(self, who: str, change: Change) -> None:
        if reason := self.target.holds(change):
            raise SettingError(f"method {who}: target {self.target_name} cannot hold its result: {reason}. Pass --target modicum.")

    def _unit_options(self, plan: Plan) -> dict[str, Option]:
        options: dict[str, Option] = {}
        sites = {site.name: site for site in self.sites}
        for name, text in plan.options.items():
            option = Option.parse(text)
            if name == DEPTH or _is_cut(option):
                continue
            units = sites[name].units if name in sites else (self.model.units[name],)
            site = sites.get(name) or Site(name, "unit", units, data_free=self.script.data_free(units[0]))
            refused = next((reason for unit in units if (reason := self.target.refusal(unit))), "")
            fitted = None if refused and option.steps else self.target.adapt(site, option)
            if fitted is None and not option.steps:
                continue
            if fitted is None:
                raise SettingError(f"plan: target {self.target_name} cannot hold {text!r} on {name}. Choose another option or target.")
            options |= {unit.name: fitted for unit in units if fitted.steps}
        return options

    def _refuse_fallbacks(self) -> None:
        raised = [event for event in self.events if "damping raised" in event]
        if raised and not self.request.allow_fallback:
            raise ModelError(
                f"{len(raised)} solves needed more damping than was asked for, the first: {raised[0]}. Use more calibration tokens, or pass "
                "--allow-fallback to accept them; the receipt will name each."
            )

    # After

    def _receipt(self, plan: Plan, table: Table | None, forms: FormStore, layout: Layout, final: Path) -> dict[str, Any]:
        predicted = layout.nbytes()
        actual = sum(path.stat().st_size for path in final.iterdir() if path.name.endswith((".safetensors", ".safetensors.index.json")))
        if actual != predicted:
            raise ModelError(f"{self.out}: must have {predicted} bytes by the plan, has {actual}. Report this.")
        allowed = self.request.budget.bytes(self.model.parameters) if self.request.budget is not None else None
        if allowed is not None and actual > allowed:
            raise BudgetError(f"budget {self.request.budget}: the files have {actual} bytes, which is more. Report this.")
        self.progress.start("verify", 1)
        with self.meter.stage("verify"):
            verification = self._reread(final, layout) if self._too_large() else self._verify(final, forms)
        self.progress.start("judge", len(self.data.test))
        with self.meter.stage("judge"):
            judged = self._quality(forms)
            self.events += judged.events()
            quality = judged.summary(self.request.seed)
        self.verdict = verdict(quality, table, self.picks, self.limits, advice(self, quality, table, actual))
        if table is not None and (event := surprise(quality, table.harm(self.picks))):
            self.events.append(event)
        return build_receipt(self, plan, table, forms, predicted, actual, verification, quality, final)

    def _verify(self, final: Path, forms: FormStore) -> dict[str, Any]:
        """Reload with the target's own loader and compare with the dequantized weights on test sequences."""
        here = [placed(self.data.test[0], "cpu")]  # whatever the device: loaders load to the computer's own memory
        module, found = self.target.verify(final, forms, here[0])
        budget, wide = self.request.budget, found.get("as wide as before")
        if wide and budget is not None and (budget.memory or budget.speed or budget.latency):
            raise BudgetError(f"budget {budget}: cuts must load narrower for it, these do not: {', '.join(sorted(wide))}. Keep them whole.")
        batches = self.data.test[:1]
        with hushed():  # some loaders do their last steps on first use
            judged = compare(self._candidate(batches, forms), plain(module, here), batches, False, self.script.outputs)
        worst = max(value for each in judged.parts.values() for value in each.divergence)
        if worst > 1e-3:
            raise ModelError(
                f"{self.out}: the reloaded model must match the dequantized weights, differs by {worst:.2g} ({judged.metric})."
            )
        return found | {"logits": {"metric": judged.metric, "largest": worst, "sequences": len(judged.divergence)}}

    def _too_large(self) -> bool:
        """Whether the target's own loader, which holds the model whole, would need more memory than is allowed."""
        return self.request.ram is not None and whole_model(self.model, self.data.test[0]) > self.request.ram

    def _reread(self, final: Path, layout: Layout) -> dict[str, Any]:
        """What can be verified without loading the model whole."""
        budget, needed = self.request.budget, readable(whole_model(self.model, self.data.test[0]))
        if budget is not None and (budget.memory or budget.speed or budget.latency):
            raise BudgetError(f"budget {budget}: what really loads must be tried with the model in memory, {needed}. Allow more --ram.")
        self.events.append(
            f"verify: the target's own loader was not run, it holds the model whole ({needed}) and --ram allows {readable(self.request.ram or 0)}; "
            "the files were read back tensor by tensor."
        )
        return {"loader": "none: every tensor read back", "tensors compared": layout.compare(final)}

    def _candidate(self, batches: list[Batch], forms: Mapping[str, Any]) -> Iterator[tuple[int, Any]]:
        dropped = frozenset(self.change.dropped)
        return streamed(self.model, batches, self.script, forms, biases=self.change.biases, dropped=dropped, pool=self.pool)

    def _quality(self, forms: Mapping[str, Any]) -> Quality:
        batches = self.data.test
        original = streamed(self.model.twin(), batches, self.script, pool=self.pool)
        return compare(
            ticked(original, self.progress.step), self._candidate(batches, forms), batches, self.model.is_causal, self.script.outputs
        )


def _is_cut(option: Option) -> bool:
    return len(option.steps) == 1 and isinstance(option.steps[0], SiteCutter)
