"""The frontier of a measured model: what quality every size can have, predicted for all sizes and measured at a few."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from modicum.allocate.integer_program import integer_program
from modicum.allocate.uniform import uniform
from modicum.core.budget import Budget
from modicum.core.errors import ModelError, SettingError, near
from modicum.core.files import write_json
from modicum.core.option import KEEP
from modicum.core.plan import Picks, Table
from modicum.core.progress import Quiet
from modicum.fit.choose import Chooser
from modicum.fit.request import Request
from modicum.judge.judge import Levels, PlanJudge
from modicum.measure.measured import Measured
from modicum.measure.settings import common
from modicum.measure.subject import Subject
from modicum.models.evaluating import evaluating
from modicum.models.model import Model
from modicum.receipt.curves import page, picture
from modicum.sweep.spill import SpillPool
from modicum.table.findings import DEPTH, GONE, Findings
from modicum.table.sizing import level_of

FRONTIER_FORMAT, FRONTIER_VERSION = "modicum-frontier", 1
# Bytes that no choice of a plan changes.
REST = "not treated"


def frontier(
    measured: str | Path | Measured, *, model: str | Path | nn.Module | Model | None = None, target: str | None = None, points: int = 40,
    measured_at: int = 6, progress: Quiet | None = None, **settings: Any,
) -> dict[str, Any]:  # fmt: skip
    """Draw what quality every size can have, from one measurement: predicted at ``points`` sizes, real at ``measured_at`` of them.

    For each target that was measured (or ``target`` alone), sizes from the smallest within reach to everything kept, evenly spaced in the
    logarithm of bytes. At each the integer program chooses, beside it ``uniform``, which shows what the choice is worth. At some of them
    both are made and compared with the original on the measurement's test sequences: mean KL per token with a bootstrap 95 % interval,
    perplexity where there is one.

    ``measured``: a directory that ``measure`` wrote, or what it returned. ``model`` is needed where a module in memory was measured. Other
    settings are those of ``measure`` that say how to work (``ram``, ``allow_pickle``, ``trust_remote_code``).

    Returns the JSON value that is written to the measurement's directory as ``frontier.json``, with ``frontier.svg`` and ``frontier.html``.
    ``rank`` is how the measurement's predictions rank random plans. ``curves`` holds for each target its ``points``: ``allowed`` bytes, and what
    was ``chosen`` and ``uniform`` within them, each with exact ``bytes``, ``bits_per_weight``, predicted ``harm``, ``shares`` of the bytes by
    option, ``cuts`` by site, ``dropped`` blocks, and ``measured`` (None at most points). The same measurement gives the same bytes.

    *Needs and cost:* an integer program for each point; for each target one sweep over the calibration sequences, which makes the forms of
    every option that occurs in a measured selection, on disk meanwhile; a pass over the test sequences for each of them.

    Raises:
        SettingError: no measurement, a target that was not measured, a count that is too small.
        ModelError: a model that cannot be opened, a measurement that is damaged, a folder that cannot be written.

    """
    known = measured if isinstance(measured, Measured) else Measured.read(measured)
    _check(points, measured_at)
    targets = _targets(known, target)
    with evaluating(_module(model, known)):
        work = _Work.begin(known, model, settings, progress or Quiet())
        with _writing(known.directory) as place:
            work.directory = work.pool.directory = place
            body = _body(known, [work.curve(name, points, measured_at) for name in targets])
            _write(known.directory, body)
    return body


@dataclass
class _Work:
    """What all curves share: the measurement, the opened model, and a folder for the forms that are judged."""

    known: Measured
    subject: Subject
    request: Request
    pool: SpillPool
    progress: Quiet
    directory: Path = Path()

    @classmethod
    def begin(cls, known: Measured, model: Any, settings: dict[str, Any], progress: Quiet) -> _Work:
        adopted, menu, data, source = known.adopt(settings, None, None, model)
        budget = Budget(size=known.meta["model"]["bytes"])
        request = Request(budget=budget, allocator="integer_program", **common(menu=menu, data=data, **adopted))
        subject = known.open(source, request)
        known.check(subject)
        return cls(known, subject, request, subject.plan_memory(()), progress)

    def curve(self, target: str, points: int, measured_at: int) -> dict[str, Any]:
        """The frontier for one target."""
        curve = _Curve(self, Chooser(self.subject, target, self.request))
        self.progress.start(f"choose for {target}", points)
        rows = [self._ticked(curve.row(size)) for size in sizes(curve.table, points)]
        curve.measure([rows[place] for place in places(len(rows), measured_at)])
        return {"target": target, "points": [row.to_json() for row in rows]}

    def _ticked(self, row: _Row) -> _Row:
        self.progress.step()
        return row


@dataclass
class _Row:
    """Two selections within one size."""

    allowed: int
    chosen: _Entry
    uniform: _Entry

    def to_json(self) -> dict[str, Any]:
        return {"allowed": self.allowed, "chosen": self.chosen.facts, "uniform": self.uniform.facts}


@dataclass
class _Entry:
    """A selection, and what there is to say of it."""

    picks: Picks
    facts: dict[str, Any]


@dataclass
class _Curve:
    """The sizes of one target."""

    work: _Work
    chooser: Chooser
    table: Table = field(init=False)
    levels: Levels = field(init=False)

    def __post_init__(self) -> None:
        work, target = self.work, self.chooser.target
        self.table = self.chooser.table(self.findings)
        directory = work.directory / target
        self.levels = Levels(
            directory, self.chooser.sizing, self.findings, work.subject.data.calibration, work.pool, work.request.seed
        )  # fmt: skip

    @property
    def findings(self) -> Findings:
        return self.work.known.findings

    def row(self, size: int) -> _Row:
        """What is chosen within a size, and what uniform gives."""
        limits = {"bytes": size}
        return _Row(size, self._entry(integer_program(self.table, limits)), self._entry(uniform(self.table, limits)))

    def _entry(self, picks: Picks) -> _Entry:
        size = self.chooser.exact_bytes(self.table, picks, self.findings)
        bits = 8 * size / self.work.subject.model.parameters
        facts = {"bytes": size, "bits_per_weight": bits, "harm": self.table.harm(picks), "shares": shares(self.table, picks)}
        return _Entry(picks, facts | _structure(self.table, picks, self.chooser, self.findings) | {"measured": None})

    def measure(self, rows: Sequence[_Row]) -> None:
        """Make the selections of some rows and compare them with the original on the test sequences."""
        entries = [entry for row in rows for entry in (row.chosen, row.uniform)]
        if not entries:
            return
        model, test = self.work.subject.model, self.work.subject.data.test
        judge = PlanJudge(self.table, self.levels, test, model.is_causal, self.work.subject.original)
        self.work.progress.start(f"measure for {self.chooser.target}", len(entries))
        judge.prepare([entry.picks for entry in entries])
        known: dict[tuple, dict[str, Any]] = {}
        for entry in entries:
            key = tuple(sorted(entry.picks.items()))
            if key not in known:
                known[key] = judge.quality(entry.picks, judge.samples).summary(self.work.request.seed)
            entry.facts["measured"] = known[key]
            self.work.progress.step()


# Points of a curve


def sizes(table: Table, points: int) -> list[int]:
    """At most ``points`` sizes in bytes, from the cheapest selection to the one of least harm, evenly spaced in their logarithm."""
    low = table.cost(table.cheapest())
    high = max(low, table.cost(table.best(lambda _, choice: (choice.harm, float(choice.bytes)))))
    found = np.ceil(np.geomspace(low, high, points)).astype(np.int64)
    found[0], found[-1] = low, high
    return sorted({int(size) for size in found})


def places(count: int, measured_at: int) -> list[int]:
    """Places among ``count`` points that are measured, evenly spread; the last, where everything is kept, has nothing to tell."""
    last = max(count - 2, 0)
    return sorted({round(place) for place in np.linspace(0, last, min(measured_at, last + 1))})


def shares(table: Table, picks: Picks) -> dict[str, float]:
    """Share of the bytes by option, in the order in which options first occur; what no choice changes as ``not treated``."""
    found: dict[str, float] = {}
    rest = table.fixed.get("bytes", 0.0)
    for site, index in picks.items():
        choice = table.choices[site][index]
        if site == DEPTH:
            rest += choice.bytes
        elif choice.bytes:
            found[choice.option] = found.get(choice.option, 0.0) + choice.bytes
    total = table.cost(picks)
    return {option: size / total for option, size in {**found, REST: rest}.items()}


def _structure(table: Table, picks: Picks, chooser: Chooser, findings: Findings) -> dict[str, Any]:
    structural = {DEPTH, *chooser.sizing.groups}
    chosen = {site: level_of(table.choices[site][index].option) for site, index in picks.items() if site in structural}
    changed = {site: option for site, option in chosen.items() if option not in (KEEP, GONE)}
    span = changed.pop(DEPTH, None)
    return {"cuts": changed, "dropped": {"option": span, "blocks": findings.spans[span].blocks} if span else None}


# Before and after


def _check(points: int, measured_at: int) -> None:
    if points < 2:
        raise SettingError(f"points: must be at least 2, got {points}.")
    if measured_at < 0:
        raise SettingError(f"measured_at: must be 0 or more, got {measured_at}.")


def _targets(known: Measured, target: str | None) -> list[str]:
    targets: list[str] = known.meta["targets"]
    if target is not None and target not in targets:
        raise SettingError(f"target {target!r}: was not measured in {known.directory}. {near(target, targets)}")
    return targets if target is None else [target]


def _module(model: Any, known: Measured) -> nn.Module | None:
    source = model if model is not None else known.source
    return source if isinstance(source, nn.Module) else None


@contextmanager
def _writing(directory: Path) -> Iterator[Path]:
    """A folder beside what is written, for the time being."""
    try:
        with tempfile.TemporaryDirectory(prefix="frontier-", dir=directory) as place:
            yield Path(place)
    except OSError as error:
        raise ModelError(f"{directory}: must be writable, is not ({error.strerror or error}). Free space, or copy it elsewhere.") from None


def _body(known: Measured, curves: list[dict[str, Any]]) -> dict[str, Any]:
    meta = known.meta
    return {
        "format": FRONTIER_FORMAT, "version": FRONTIER_VERSION,
        "model": {name: meta["model"][name] for name in ("name", "hash", "parameters", "bytes")},
        "data": meta["data"], "settings": meta["settings"], "rank": known.findings.rank, "curves": curves,
    }  # fmt: skip


def _write(directory: Path, body: Mapping[str, Any]) -> None:
    write_json(directory / "frontier.json", body)
    drawn = picture(body)
    (directory / "frontier.svg").write_text(drawn, encoding="utf-8")
    (directory / "frontier.html").write_text(page(body, drawn), encoding="utf-8")
