"""One run of ``fit``, stage by stage."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from modicum.core.arguments import checked
from modicum.core.budget import Budget, every
from modicum.core.config import NAME as CONFIG
from modicum.core.config import configured, write_config
from modicum.core.errors import ModelError, SettingError
from modicum.core.files import write_json
from modicum.core.option import Option
from modicum.core.output import mark
from modicum.core.plan import Plan
from modicum.core.progress import Quiet
from modicum.export import load
from modicum.export._family import Layout
from modicum.fit import explicit
from modicum.fit.account import Outcome, build_receipt, tell
from modicum.fit.advice import advice
from modicum.fit.card import FILE as CARD
from modicum.fit.card import card
from modicum.fit.choose import Chooser
from modicum.fit.choosing import Choosing, Chosen
from modicum.fit.forecast import forecast
from modicum.fit.heal import check as check_healing
from modicum.fit.heal import healed, paired
from modicum.fit.made import Made
from modicum.fit.making import Making
from modicum.fit.request import WANTED, Request
from modicum.fit.retune import check as check_retuning
from modicum.fit.retune import retuned
from modicum.fit.rounds import Begun
from modicum.fit.scene import Scene
from modicum.fit.verdict import surprise, verdict
from modicum.fit.verify import timed, verified, weighed
from modicum.judge.blocks import BlockErrors
from modicum.judge.quality import Quality
from modicum.measure.asked import asked
from modicum.measure.measured import Measured
from modicum.measure.settings import common
from modicum.models.copying import copied
from modicum.models.evaluating import evaluating
from modicum.models.model import Model
from modicum.sweep.ranks import LONE, Ranks
from modicum.work.meter import Meter
from modicum.work.workdir import RUN, WorkDir, beside, read_from, temporary

Page = Callable[[Mapping[str, Any]], str]
"""Draws a receipt as a page."""


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
        return load(self.out, into=None if self.source.config is not None else copied(self.source.stored.module, apart=True))


@checked(names=[field.name for field in fields(Request)], but=("model", "data"))
@configured(Budget, Request, alternatives=WANTED, other={"from": "measured"})
def fit(
    model: str | Path | nn.Module | Model | None = None, budget: str | Budget | None = None, *, size: str | int | None = None,
    bpw: float | str | None = None, params: str | float | None = None, macs: str | float | None = None, loss: str | float | None = None,
    memory: str | int | None = None, speed: str | float | None = None, latency: str | float | None = None, method: str | Option | None = None,
    plan: str | Path | Plan | None = None, measured: str | Path | Measured | None = None, data: Any = None, out: str | Path | None = None,
    menu: Iterable[str | Option] | str | None = None, ram: str | int | None = None, keep: Iterable[str] = (), progress: Quiet | None = None,
    ranks: Ranks = LONE, page: Page | None = None, config: str | Path | None = None, **settings: Any,
) -> Result:  # fmt: skip
    """Give the best ``model`` that fits ``budget``, in files that the target's runtime loads, with a receipt.

    ``model``: ``demo``, a directory, a Hugging Face id or a module. ``budget`` (``4.5MB``, ``4.5bpw``, or a ``Budget``), ``size``, ``bpw``,
    ``params`` (``60%`` of stored values), ``macs`` (``60%`` of the multiply-adds of one pass, or ``5G``), ``loss`` (``1%`` more perplexity),
    ``memory`` with ``context`` and ``batch``, ``speed`` (``1.5x``) and ``latency`` (``20ms``): those given hold together. Instead of budgets
    ``method`` (an option applied everywhere) or ``plan``. ``measured``: a directory that ``measure`` wrote, which then is not measured again; its
    model and data are taken. ``data``: a path to text, or any iterable of batches; without it the shipped text. ``out``: the directory to write;
    without it a temporary one that lives as long as the result. ``ranks``: the processes that call this together, the first of which writes
    (``modicum.sweep.ranks.joined``). ``page``: what draws the receipt as a page (``modicum.report``), written beside it as ``report.html``. Other
    settings as on the command line: see ``Request``. ``config``: a file, YAML or JSON, of settings that are not given here, such as the
    ``run.yaml`` that is written beside every receipt. Raises ``ModicumError`` kinds; nothing is left behind but ``OUT.partial``
    (``OUT.rank-N.partial`` of the other ranks), from which the same call continues.
    """
    parsed = Budget.parse(budget) if isinstance(budget, str) else budget
    words = Budget.of(size=size, bpw=bpw, params=params, macs=macs, loss=loss, memory=memory, speed=speed, latency=latency)
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
    said = asked(request, model=model, data=data, plan=plan, measured=measured)
    place = temporary() if request.out is None and not request.dry_run else None
    try:
        with evaluating(model if isinstance(model, nn.Module) else None):
            return Run(model, request, batches, said, progress, known, ranks, place, page).run()
    except BaseException:
        if place is not None:
            shutil.rmtree(place, ignore_errors=True)
        raise


class Run:
    """One run, from the request to the files."""

    def __init__(
        self, source: str | Path | nn.Module | Model, request: Request, batches: Any, said: Mapping[str, Any], progress: Quiet | None = None,
        measured: Measured | None = None, ranks: Ranks = LONE, temporary: Path | None = None, page: Page | None = None,
    ):  # fmt: skip
        self.request, self.meter, self.ranks, self.temporary, self.page = request, Meter(progress), ranks, temporary, page
        self.said = said
        self.healing: dict[str, Any] = {}
        self.out = beside(request.out or (temporary or Path()) / "model", ranks.rank)
        self.place = WorkDir(self.out, RUN, request.overwrite, read_from(source, measured, request.data))
        if request.budget is not None:
            self._check_out()
        with self.meter.stage("open"):
            self.scene = Scene.open(source, request, batches, measured, ranks, self.place)
        self.pool = self.scene.subject.plan_memory(self.scene.options, ranks)
        self.events: list[str] = list(self.scene.model.notes)

    def _check_out(self) -> None:
        if self.request.out is not None and not self.request.dry_run:
            self.ranks.first("out", self.place.check)

    def run(self) -> Result:
        """Do it all, or with ``dry_run`` only say what would be done."""
        scene, chooser = self.scene, None
        if self.request.dry_run:
            return Result(self.out, forecast(scene), Plan(scene.target.name), scene.model)
        if self.request.budget is not None:
            chooser = Chooser(scene.subject, scene.target.name, self.request)
            known = scene.measured.findings if scene.measured is not None else None
            self.ranks.first("budget", lambda: chooser.check(chooser.table(known)))
        else:
            self._check()
            self._check_out()
            scene = self.scene
        check_healing(scene)
        check_retuning(scene)
        with self.place.held():
            return self._held(chooser)

    def _check(self) -> None:
        """Raise ``SettingError`` for a method or a plan that the model or the target cannot have."""
        explicit.check(self.scene)

    def _held(self, chooser: Chooser | None) -> Result:
        scene = self.scene
        fingerprint = self.ranks.agreed(self.request.fingerprint(scene.model.hash(), scene.data.hashes))
        partial = self.pool.directory = self.place.begin(fingerprint, scene.subject.compute.to_json())
        if self.ranks.leads:
            self.place.forget_ranks(self.ranks.count)
        choosing = Choosing(scene, partial, self.pool, self.meter, self.events, chooser)
        making = self._making(partial)
        chosen = choosing.run()
        if self.scene.subject.unconfirmed:
            with self.meter.stage("open"):
                chosen.events += self.scene.subject.confirm()
        made = making.run(chosen)
        better = self.ranks.first("surpassed", lambda: choosing.surpassed(chosen, made.lost))
        if better is not None:
            chosen = better
            made = making.run(chosen)
        self.events = making.events
        if self.request.retune:
            made, told = retuned(made)
            self.events += told
        if self.request.heal:
            made = self._healed(made, making.begun, partial / "healing")
        receipt, out = self.ranks.first("receipt", lambda: self._written(partial, chosen, made))
        if not self.ranks.leads:
            self.place.discard()
        return Result(out, receipt, chosen.plan, scene.model, self.temporary)

    def _making(self, partial: Path) -> Making:
        """What makes the forms of a plan."""
        return Making(self.scene, partial, self.pool, self.meter)

    def _healed(self, made: Made, begun: Begun, place: Path) -> Made:
        """What was made, trained; unhealed as it stays beside."""
        before, (made, self.healing) = made, healed(made, place, self.meter)
        self.events += self.healing.pop("events")
        if begun.accounts:
            self.healing["rounds"] = begun.accounts
        if made is not before:
            self.healing["unhealed"] = before
        return made

    def _written(self, partial: Path, chosen: Chosen, made: Made) -> tuple[dict[str, Any], Path]:
        """Files and receipt, verified and in place; the receipt, and where they are."""
        self._refuse_fallbacks()
        final = partial / "final"
        shutil.rmtree(final, ignore_errors=True)
        final.mkdir()
        with self.meter.stage("export", 1):
            layout = made.target.layout(made.forms, made.change.biases, made.dropped)
            layout.write(final)
            made.target.finish(final, made.forms, made.dropped)
        chosen.plan.write(final / "plan.json")
        mark(final)  # of what is interrupted from here on it is known what is ours
        receipt = self._receipt(chosen, made, layout, final)
        model = self.scene.model
        said, told = card(receipt, model.directory, causal=model.is_causal, known=model.config is not None)
        receipt["events"] += told
        (final / CARD).write_text(said, encoding="utf-8")
        write_json(final / "receipt.json", receipt)
        write_config(final / CONFIG, self.said)
        tell(receipt)
        if self.page is not None:
            (final / "report.html").write_text(self.page(receipt), encoding="utf-8")
        self.place.finish(final)
        return receipt, self.out

    def _compared(self, judged: Quality) -> dict[str, Any]:
        """The account of healing, with what the model would have lost without it on the same test sequences."""
        if (before := self.healing.pop("unhealed", None)) is None:
            return self.healing
        unhealed = before.quality(self.meter.progress.step)
        return self.healing | {
            "before": unhealed.summary(self.request.seed), "test": paired(unhealed.divergence, judged.divergence)
        }  # fmt: skip

    def _refuse_fallbacks(self) -> None:
        raised = [event for event in self.events if "damping raised" in event]
        if raised and not self.request.allow_fallback:
            raise ModelError(
                f"{len(raised)} solves needed more damping than was asked for, the first: {raised[0]}. Use more calibration tokens, or pass "
                "--allow-fallback to accept them; the receipt will name each."
            )

    def _receipt(self, chosen: Chosen, made: Made, layout: Layout, final: Path) -> dict[str, Any]:
        """What came of it, verified and judged."""
        actual, table = weighed(made, layout, final, str(self.out)), chosen.table
        with self.meter.stage("verify", 1):
            verification = verified(made, layout, final, str(self.out), self.events, texts=self.page is not None)
            verification |= timed(made, chosen, final, self.events)
        with self.meter.stage("judge", len(self.scene.data.test)):
            blocks = BlockErrors(self.scene.script, self.scene.data.test, self.pool)
            judged = made.quality(self.meter.progress.step, blocks)
            self.events += judged.events()
            healing = self._compared(judged)
            by_block = made.by_block(blocks, self.events, before=self.page is not None)
            quality = judged.summary(self.request.seed)
        beside = advice(self.scene, chosen, quality, actual)
        if table is not None and (event := surprise(quality, table.forecast(chosen.picks))):
            self.events.append(event)
        return build_receipt(
            Outcome(
                made=made, chosen=chosen, final=final, predicted=layout.nbytes(), actual=actual, verification=verification, quality=quality,
                verdict=verdict(quality, table, chosen.picks, chosen.limits, beside), asked=self.said, texts=verification.pop("texts", []),
                by_block=by_block, events=self.events, stages=self.meter.stages, healing=healing,
            )
        )  # fmt: skip
