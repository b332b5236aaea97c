"""Real quality of a plan that is only considered: its forms are made once, on the original's inputs, and put together for each candidate."""

from __future__ import annotations

import copy
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modicum.core.method import Change
from modicum.core.option import KEEP, Option
from modicum.core.plan import Picks, Table
from modicum.core.unit import Site, Stats, Unit
from modicum.data.splits import Batch, count_rows, count_tokens, some_rows
from modicum.drop._family import Dropper, SiteCutter, Wanted, cut_each
from modicum.forms import Cut, Dense, Form
from modicum.judge.quality import RUINED, Quality, RuinedError, compare, streamed
from modicum.models.model import Model
from modicum.sweep import Script, Stage, Sweep
from modicum.sweep.spill import SpillPool
from modicum.table.findings import DEPTH, GONE, Findings
from modicum.table.harm import looked_up_alone
from modicum.table.sizing import Sizing, level_of
from modicum.work.store import FormStore

# Dequantized weights and original outputs kept in memory between candidates, in bytes each.
_HELD_BYTES = 2_000_000_000
# Judging is worth its while where at least so many times a candidate can be judged on a sequence.
_FEWEST = 24
# Tokens for each column of the widest weight that forms are made on, those to be judged alone; what is written is made on all.
_TOKENS = 8

_THEN = " > "

Part = tuple[str, str, str]
"""Unit, option, and what was done to the weight before: a cut's option, a span's option whose stand-in was folded into it, both (cut first,
joined by ``_THEN``), or nothing."""


class Levels:
    """Forms of options on units by ``Part``, on disk in ``directory``; those not made yet are made together, by one sweep over as many of the
    ``calibration`` sequences as it takes to tell plans apart.

    Where the batches are known that plans will be ``judged`` on, tables are made as far as these look them up, and plans can be judged on no others.
    """

    def __init__(
        self, directory: Path, sizing: Sizing, findings: Findings, calibration: Sequence[Batch], pool: SpillPool, seed: int,
        judged: Sequence[Batch] = (),
    ):  # fmt: skip
        self.store, self.judged = FormStore(directory), list(judged)
        self.sizing, self.findings, self.pool, self.seed = sizing, findings, pool, seed
        units = sizing.target.model.units.values()
        self.calibration = enough(calibration, _TOKENS * max((unit.shape[1] for unit in units if unit.kind != "embedding"), default=0))
        self._changes: dict[str, Change] = {}
        self._waiting: dict[str, Form] = {}
        self._unit = ""

    def serving(self, sizing: Sizing, findings: Findings) -> Levels:
        """The same forms for another target's selections."""
        self.flush()
        other = copy.copy(self)
        other.sizing, other.findings = sizing, findings
        return other

    def keep(self, unit: Unit, option: Option, base: str, form: Form) -> None:
        """Store a form that was made elsewhere (by the measurement)."""
        if unit.name != self._unit:
            self.flush()
            self._unit = unit.name
        if option.steps or base:
            self._waiting[_name((unit.name, str(option), base))] = form

    def flush(self) -> None:
        """Write what waits."""
        if self._waiting:
            self.store.put(f"{len(list(self.store.directory.iterdir())):06d}", self._waiting)
            self._waiting = {}

    def __contains__(self, part: Part) -> bool:
        return _name(part) in self.store

    def __getitem__(self, part: Part) -> Form:
        return self.store[_name(part)]

    def value(self, part: Part) -> torch.Tensor:
        """Dense value of a part; of a table that was made only where it is looked up, the other rows are the original's."""
        form = self[part]
        if part[2] or not isinstance(form, Cut) or form.rows is None:
            return form.dense()
        model = self.sizing.target.model
        value = model.matrix(model.units[part[0]]).clone()
        value[form.rows] = form.inner.dense()
        return value

    def require(self, parts: Iterable[Part]) -> None:
        """Make what is missing of ``parts`` on the original's inputs."""
        self.flush()
        missing = {part for part in parts if part not in self and (part[1] != KEEP or part[2])}
        missing -= self._looked_up({part for part in missing if not part[2]}) if self.judged else set()
        if not missing:
            return
        model, script = self.sizing.target.model, self.sizing.target.script
        wanted: dict[str, list[tuple[Option, str]]] = {}
        for unit, text, base in sorted(missing):
            wanted.setdefault(unit, []).append((Option.parse(text), base))
        starts = self._bases({(unit, base) for unit, _, base in missing if base})
        needs = frozenset().union(*(option.needs for options in wanted.values() for option, _ in options))

        def treat(stage: Stage) -> None:
            for unit in stage.units:
                for option, base in wanted.pop(unit.name, []):
                    self.keep(unit, option, base, self._made(unit, option, starts.get((unit.name, base)), stage.stats[unit.name]))

        Sweep(model, self.calibration, script, treat, needs=needs, seed=self.seed, pool=self.pool, measured=set(wanted)).finish(
            frozenset(wanted)
        )
        for name, options in wanted.items():
            for option, base in options:
                fitted = option.without_data() or option
                self.keep(model.units[name], option, base, self._made(model.units[name], fitted, starts.get((name, base)), Stats()))
        self.flush()

    def _looked_up(self, missing: set[Part]) -> set[Part]:
        """Make the parts that are tables as far as the judged batches look them up; which these are."""
        units, model = self.sizing.target.model.units, self.sizing.target.model
        parts: dict[str, list[Part]] = {}
        for part in sorted(missing):
            if looked_up_alone(units[part[0]]) and Option.parse(part[1]).by_rows:
                parts.setdefault(part[0], []).append(part)
        made: set[Part] = set()

        def treat(stage: Stage) -> None:
            for unit in (unit for unit in stage.units if unit.name in parts):
                frequency = stage.stats[unit.name].frequency
                if frequency is None or not bool(frequency.any()):
                    continue
                met = frequency > 0
                some = replace(unit, shape=(int(met.sum()), unit.shape[1]))
                for part in parts[unit.name]:
                    option = Option.parse(part[1])
                    form = self._plain(some, option, model.matrix(unit)[met], stage.stats[unit.name].felt)
                    self.keep(unit, option, "", Cut(form, met, None))
                    made.add(part)

        if parts:
            script = self.sizing.target.script
            Sweep(model, self.judged, script, treat, seed=self.seed, pool=self.pool, measured=set(parts)).finish(frozenset(parts))
            self.flush()
        return made

    @staticmethod
    def _plain(unit: Unit, option: Option, stored: torch.Tensor, felt: torch.Tensor | None) -> Form:
        """What an option makes of a weight without data, but for how a table is ``felt`` (columns, columns)."""
        site, stats = Site(unit.name, "unit", (unit,)), {unit.name: Stats(reference=stored, felt=felt, ahead=option.steps[:1])}
        return option.apply(site, stats, {unit.name: Dense(stored)}).forms[unit.name]

    def _made(self, unit: Unit, option: Option, start: Form | None, stats: Stats) -> Form:
        stored = self.sizing.target.model.matrix(unit)
        begun = start or Dense(stored)
        if not option.steps:
            return begun
        # As while options are compared: what is written is refined further.
        stats.reference, stats.ahead = stored if start is None else start.dense(), option.steps[:1]
        return option.apply(Site(unit.name, "unit", (unit,)), {unit.name: stats}, {unit.name: begun}).forms[unit.name]

    def change(self, span: str) -> Change:
        """What leaving out a span does, once per span."""
        if span not in self._changes:
            (step,) = Option.parse(span).steps
            assert isinstance(step, Dropper)
            target = self.sizing.target
            self._changes[span] = step.reshape(target.model, target.script, self.calibration, self.pool, self.seed)
        return self._changes[span]

    def _bases(self, wanted: set[tuple[str, str]]) -> dict[tuple[str, str], Form]:
        """Weights after cuts and folds, before any other option, by unit and base."""
        owner = {unit.name: site for site in self.sizing.cuts.values() for unit in site.units}
        made: dict[str, dict[str, Form]] = {}
        asked: dict[str, tuple[Wanted, dict[str, Form]]] = {}
        for base in sorted({base for _, base in wanted}):
            units = {unit for unit, other in wanted if other == base}
            words = base.split(_THEN)
            folded = self.change(words[-1]).forms if words[-1] in self.findings.spans else {}
            made[base] = {unit: folded[unit] for unit in units if unit in folded}
            if words[0] not in self.findings.spans:
                asked[base] = self._cuts(words[0], {owner[unit].name: owner[unit] for unit in units}), folded
        target = self.sizing.target
        if asked:
            cut = cut_each(target.model, target.script, self.calibration, self.pool, list(asked.values()), seed=self.seed)
            made |= {base: change.forms for base, change in zip(asked, cut)}
        return {(unit, base): made[base][unit] for unit, base in wanted}

    def _cuts(self, text: str, sites: dict[str, Site]) -> Wanted:
        (step,) = Option.parse(text).steps
        assert isinstance(step, SiteCutter)
        return {name: (site, step, self.findings.cuts[name][text].kept) for name, site in sites.items()}


def too_slow(model: Model, script: Script, batch: Batch, seconds: float, pool: SpillPool) -> str:
    """Why judging candidates is not worth its while within ``seconds``, told by the time ``batch`` takes; nothing where it is."""
    begun = time.monotonic()
    for _ in streamed(model, [batch], script, pool=pool):
        pass
    each = (time.monotonic() - begun) / max(1, count_rows(batch))
    return f"judging a candidate on one sequence takes about {each:.2g} s, {seconds:g} s are allowed" if each * _FEWEST > seconds else ""


class PlanJudge:
    """KL per token of selections on ``batches``, sequence by sequence, from the forms in ``levels``; no sequence is judged twice.

    ``original``: what they are held against, where it is another than what forms are put into.
    """

    def __init__(
        self, table: Table, levels: Levels, batches: Sequence[Batch], causal: bool = False, original: Model | None = None
    ):  # fmt: skip
        self.table, self.levels, self.batches, self.causal = table, levels, list(batches), causal
        self.samples = sum(count_rows(batch) for batch in batches)
        self.tokens = count_tokens(batches) / max(1, self.samples)  # of a sequence
        self.target = levels.sizing.target
        self.original = original or self.target.model
        assert not levels.judged or all(any(batch is other for other in levels.judged) for batch in batches), "forms were made for others"
        self.evaluations, self._metric = 0, ""
        self._dense: OrderedDict[Part, Dense] = OrderedDict()
        self._held = 0
        self._originals: dict[tuple[int, int], list[tuple[int, Any]]] = {}
        self._found: dict[tuple[int, ...], np.ndarray] = {}

    def __call__(self, picks: Picks, samples: int) -> np.ndarray:
        """Judge one selection: (samples,) nats."""
        if (begun := self.judged(picks)) < min(samples, self.samples):
            self.learn(picks, begun, self.rows(picks, begun, samples))
        return self._known(picks)[: self._count(0, samples)].copy()

    @property
    def metric(self) -> str:
        """What the numbers are; known once something was judged."""
        return self._metric

    def prepare(self, candidates: Sequence[Picks]) -> None:
        """Make together all forms that several selections will need."""
        self.levels.require(part for picks in candidates for part in self.parts(picks))

    def many(self, candidates: Sequence[Picks], samples: int) -> list[np.ndarray]:
        """Judge several, one after the other; forms that are missing are made together."""
        self.prepare(candidates)
        return [self(picks, samples) for picks in candidates]

    # What was judged before

    def judged(self, picks: Picks) -> int:
        """Sequences that a selection was judged on."""
        return len(self._known(picks))

    def learn(self, picks: Picks, begun: int, rows: np.ndarray) -> None:
        """Remember what a selection loses on the sequences from ``begun`` on."""
        self.evaluations += self.judged(picks) == 0
        self._found[self._key(picks)] = np.concatenate([self._known(picks)[:begun], rows])

    def _known(self, picks: Picks) -> np.ndarray:
        return self._found.get(self._key(picks), np.zeros(0))

    def _key(self, picks: Picks) -> tuple[int, ...]:
        return tuple(picks[site] for site in self.table.choices)

    # Judging

    def rows(self, picks: Picks, begun: int, samples: int) -> np.ndarray:
        """Divergences on the sequences from ``begun`` to ``samples``."""
        try:
            return np.array(self.quality(picks, samples, begun).by_row(self._between(begun, samples)))
        except RuinedError:  # no reason to end a search
            return np.full(self._count(begun, samples), RUINED)

    def quality(self, picks: Picks, samples: int, begun: int = 0) -> Quality:
        """Divergence, and likelihoods where tokens predict the next, on the sequences from ``begun`` to ``samples``."""
        parts = self.parts(picks)
        self.levels.require(parts)
        change = self.levels.change(span) if (span := self._span(picks)) else Change()
        forms: dict[str, Form] = dict(change.forms)
        for part in parts:
            if part[1] != KEEP or part[2]:
                forms[part[0]] = self._value(part)
        batches = self._between(begun, samples)
        candidate = streamed(
            self.target.model, batches, self.target.script, forms, biases=change.biases, dropped=frozenset(change.dropped),
            pool=self.levels.pool,
        )  # fmt: skip
        found = compare(self._original((begun, samples), batches), candidate, batches, self.causal, self.target.script.outputs)
        self._metric = found.metric
        return found

    def parts(self, picks: Picks) -> list[Part]:
        """What a selection is made of: every unit that stays, its option, and what was done to it before."""
        span, found = self._span(picks), []
        folded = self.levels.change(span).forms if span else {}
        gone = set(self.levels.findings.spans[span].blocks) if span else set()
        for site in self.target.sites():
            text = self.table.choices[site.name][picks[site.name]].option
            for unit in site.units:
                if text != GONE and not self.target.script.home(unit.name, gone):
                    bases = [self._cut_of(site.name, picks), span if unit.name in folded else ""]
                    found.append((unit.name, text, _THEN.join(base for base in bases if base)))
        return found

    def _cut_of(self, site: str, picks: Picks) -> str:
        parent = self.table.parents.get(site, DEPTH)
        if parent == DEPTH:
            return ""
        text = level_of(self.table.choices[parent][picks[parent]].option)
        return "" if text in (KEEP, GONE) else text

    def _span(self, picks: Picks) -> str:
        text = self.table.choices[DEPTH][picks[DEPTH]].option if DEPTH in picks else KEEP
        return "" if text == KEEP else text

    def _value(self, part: Part) -> Dense:
        if part not in self._dense:
            weights, unit = self.target.model.weights, self.target.model.units[part[0]]
            value = Dense(self.levels.value(part).to(weights.dtype(unit.parameter)))  # as a runtime has it
            self._dense[part] = value
            self._held += value.nbytes
            while self._held > _HELD_BYTES and len(self._dense) > 1:
                self._held -= self._dense.popitem(last=False)[1].nbytes
        self._dense.move_to_end(part)
        return self._dense[part]

    def _between(self, begun: int, samples: int) -> list[Batch]:
        return between(self.batches, begun, samples, self.target.script.whole)

    def _count(self, begun: int, samples: int) -> int:
        return sum(map(count_rows, self._between(begun, samples)))

    def _original(self, key: tuple[int, int], batches: list[Batch]) -> Iterator[tuple[int, Any]]:
        """The original's outputs: kept from the first time where they are small enough, otherwise run again."""
        if key in self._originals:
            return iter(self._originals[key])
        outputs = streamed(self.original.twin(), batches, self.target.script, pool=self.levels.pool)
        known: list[tuple[int, Any]] = []
        held = 0
        for index, output in outputs:
            known.append((index, read := self.target.script.outputs.keep(output)))
            held += sum(value.nbytes for value in read)
            if held > _HELD_BYTES:
                return chain(known, outputs)
        self._originals[key] = known
        return iter(known)


def enough(batches: Sequence[Batch], tokens: int) -> list[Batch]:
    """The first of ``batches`` that have at least ``tokens`` together."""
    counts = accumulate(map(count_tokens, ([batch] for batch in batches)), initial=0)
    return [batch for batch, before in zip(batches, counts) if before < tokens or not before]


def between(batches: Sequence[Batch], begun: int, samples: int, whole: bool) -> list[Batch]:
    """The rows of ``batches`` from ``begun`` to ``samples``; batches that run ``whole`` alone, those that have any of these rows."""
    found: list[Batch] = []
    for batch in batches:
        count = count_rows(batch)
        if begun < count and samples > 0:
            found.append(batch if whole else some_rows(batch, max(begun, 0), samples))
        begun, samples = begun - count, samples - count
    return found


def _name(part: Part) -> str:
    return " @ ".join(part)
