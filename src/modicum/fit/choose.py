"""Choosing: budgets become limits, an allocator divides them, and what the header's estimate held back is spent too."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np

from modicum.allocate import ALLOCATORS, JUDGED
from modicum.allocate._family import Judge, fill
from modicum.allocate.integer_program import integer_program
from modicum.core.budget import Budget, readable
from modicum.core.errors import BudgetError, ModelError, listed
from modicum.core.option import KEEP, Option
from modicum.core.plan import Picks, Table
from modicum.fit.out_of_reach import out_of_reach
from modicum.fit.request import Request
from modicum.fit.uniform import restricted, sentence, words
from modicum.judge.judge import PlanJudge
from modicum.judge.plain import SEQUENCES, Rival, plains
from modicum.judge.workers import workers
from modicum.measure.subject import Subject
from modicum.runtime.products import Products
from modicum.table.exact import exact_bytes
from modicum.table.findings import GONE, Findings
from modicum.table.sizing import level_of

# Plain options that are judged beside a choice, those that are expected to lose least, and how many times as much they may lose on a quarter of
# the sequences to be judged on all.
TRIED, _FAR = 3, 3.0
# Share of the forecast within which auto's answer is the best where nothing is judged: no forecast is better than that, and the last millionth takes
# most of the time.
_GAP = 1e-3

_near = partial(integer_program, gap=_GAP)


@dataclass
class Chooser:
    """Divides the request's budget for one target."""

    subject: Subject
    target: str
    request: Request
    report: dict[str, Any] = field(default_factory=dict)
    _known: tuple[Findings, dict[str, float], Table] | None = None
    _rivals: tuple[Table, list[Rival]] | None = None
    _free: Table | None = None  # of which ``uniform`` leaves one scheme

    def __post_init__(self) -> None:
        assert self.request.budget is not None
        self.budget: Budget = self.request.budget
        self.sizing = self.subject.sizing(self.target)
        self.runtime = self.subject.runtime(self.target, self.request.batch, self.request.context, self.sizing.cuts)
        if self.budget.memory or self.timed:
            self.sizing.runtime = self.runtime.pricing(self.timed)
        if self.timed:
            self.sizing.block_seconds = self.runtime.block_rest
        if self.budget.macs is not None:
            self.sizing.macs, self.sizing.block_macs = self.products.of, self.products.block_rest

    @cached_property
    def products(self) -> Products:
        """Prices of forms in multiply-adds."""
        assert self.subject.script.work is not None
        return Products(self.subject.script.work, self.runtime, self.sizing.cuts, self.sizing.target.sites())

    @property
    def timed(self) -> bool:
        """Whether time is limited."""
        return self.budget.speed is not None or self.budget.latency is not None

    def table(self, findings: Findings | None) -> Table:
        """The table of the target, time outside all sites included; made once of the same findings."""
        if findings is None:
            return self._made(None)
        if self._known is None or self._known[0] is not findings or self._known[1] != findings.scales:
            self._known = findings, dict(findings.scales), self._made(findings)
        return self._known[2]

    def _made(self, findings: Findings | None) -> Table:
        table = self.sizing.table(findings)
        table.fixed["harm"] = self.subject.lost
        if self.timed:
            table.fixed["seconds"] = self.runtime.rest()
        if self.budget.macs is not None:
            table.fixed["macs"] = self.products.rest()
        if self.request.uniform and not self.sizing.target.mixes:
            self._free, table = table, restricted(self.sizing, table, self.limits(), integer_program)
        return table

    def limits(self) -> dict[str, float]:
        """The most of each resource that the budgets allow."""
        model, budget = self.subject.model, self.budget
        limits: dict[str, float] = {}
        if (allowed := budget.bytes(model.parameters)) is not None:
            limits["bytes"] = allowed
        if budget.params is not None:
            limits["values"] = budget.params * model.parameters
        if budget.macs is not None:
            limits["macs"] = budget.multiplications(self.products.work.whole)
        if budget.memory is not None:
            limits["memory"] = budget.memory - self.runtime.overhead()
        if self.timed:
            bounds = [budget.latency, None if budget.speed is None else self.runtime.original() / budget.speed]
            limits["seconds"] = min(bound for bound in bounds if bound is not None)
        return limits

    def check(self, table: Table) -> None:
        """Raise ``BudgetError`` where no selection is within the limits: the smallest reachable, what blocks it, what to relax."""
        limits = self.limits()
        for resource, most in limits.items():
            smallest = table.cost(table.cheapest({resource: max(most, 1e-9)}), resource)
            if smallest > most:
                raise BudgetError(out_of_reach(self, resource, most, smallest))
        if len(limits) > 1 and not table.fits(integer_program(table, limits, gap=1.0), limits):
            raise BudgetError(f"budget {self.budget}: each part can be reached alone, not all together. Relax {' or '.join(limits)}.")

    # Choosing

    def foretold(self, table: Table, findings: Findings) -> Picks:
        """What the forecast alone chooses, or the model as it is where there is room for it."""
        limits = self.limits()
        return self.whole(table, findings, limits) or self._spent(table, findings, limits, None)

    def choose(self, table: Table, findings: Findings, judge: PlanJudge | None, searching: bool = True) -> Picks:
        """A selection within all budgets, by what a judge says; without ``searching`` that is only asked between the forecast's and plain options.

        Raises ``BudgetError`` where there is none.
        """
        limits = self.limits()
        self.check(table)
        begun = time.monotonic()
        if self.budget.loss is not None:
            limits["bytes"] = self._smallest(table, findings, limits, judge)
        if not limits:
            raise BudgetError(f"budget {self.budget}: nothing is limited. Pass a size too.")
        whole = self.whole(table, findings, limits) if self.budget.loss is None else None
        search = judge if searching and self.request.search_time and self.request.allocator in JUDGED and whole is None else None
        # Alone, auto is what it starts from.
        named = "integer_program" if search is None and self.request.allocator == "auto" else self.request.allocator
        self.report |= {"allocator": named, "events": []}
        if search is None:
            picks = self._spent(table, findings, limits, None)
        else:
            with workers(search, self.request.workers, self.report["events"]) as spread:
                picks = self._spent(table, findings, limits, spread)
            self.report["evaluations"] = search.evaluations
            ends = {"start": integer_program(table, limits), "end": picks}
            self.report |= {name: float(search(found, search.samples).mean()) for name, found in ends.items()}
        # What a search or the room in the header changed may lose more than what was found to lose little enough.
        if self.budget.loss is not None and judge is not None and self._rise(picks, judge) > self.budget.loss:
            picks = integer_program(table, limits)
        picks = self._held(table, findings, picks, judge) if whole is None else whole
        self._cost_of_one(table, picks, findings, limits)
        self.report["seconds"] = time.monotonic() - begun
        return picks

    def whole(self, table: Table, findings: Findings, limits: Mapping[str, float]) -> Picks | None:
        """The model as it is, where there is room for it: a cut of no harm on the calibration data may have some elsewhere."""
        kept = {site: [choice.option for choice in choices] for site, choices in table.choices.items()}
        if not all(KEEP in options for options in kept.values()):
            return None
        picks = table.settle({site: options.index(KEEP) for site, options in kept.items()})
        if table.harm(picks) or not table.fits(picks, limits) or self.exact_bytes(table, picks, findings) > limits.get("bytes", math.inf):
            return None
        return picks

    def _cost_of_one(self, table: Table, picks: Picks, findings: Findings, limits: Mapping[str, float]) -> None:
        """Note what one scheme costs beside the free choice, and as an event."""
        if not self.request.uniform:
            return
        told = lambda table, picks: {"bytes": self.exact_bytes(table, picks, findings), "forecast": table.harm(picks)}
        mine = told(table, picks)
        free = mine if self._free is None else told(self._free, self._spent(self._free, findings, dict(limits), None))
        self.report["uniform"] = mine | {"scheme": words(self.sizing, table, picks), "free": free}
        self.report["events"].append(sentence(self.report["uniform"], self.target))

    # Against plain options

    def rivals(self, table: Table, findings: Findings) -> list[Rival]:
        """Plain options within the budgets, the one expected to lose least first; told once for a table."""
        if self._rivals is None or self._rivals[0] is not table:
            self._rivals = table, self._found_rivals(table, findings)
        return self._rivals[1]

    def _found_rivals(self, table: Table, findings: Findings) -> list[Rival]:
        limits, known = self.limits(), findings.plain.get(self.target, {})
        most, others, found = limits.pop("bytes", math.inf), limits, list[Rival]()
        for name, picks in plains(self.sizing.target, self.sizing.menu, table).items():
            size = self.exact_bytes(table, picks, findings)
            if size <= most and table.fits(picks, others):
                found.append(Rival(name, picks, size, table.harm(picks), known.get(name)))
        return sorted(found, key=lambda rival: rival.expected)

    def _held(self, table: Table, findings: Findings, picks: Picks, judge: PlanJudge | None) -> Picks:
        """The choice, or a plain option in its place where that does better."""
        rivals = [rival for rival in self.rivals(table, findings) if rival.picks != picks]
        if not rivals:
            return picks
        if self.budget.loss is not None and judge is not None:
            return self._smaller(table, findings, picks, judge, rivals)
        if judge is not None:
            return self._judged(table, findings, picks, judge, rivals)
        if not any(rival.tried for rival in rivals):
            return self._foretold(table, picks, min(rivals, key=lambda rival: rival.harm))
        return picks  # what is made of it will be held against what was measured

    def _judged(self, table: Table, findings: Findings, picks: Picks, judge: PlanJudge, rivals: list[Rival]) -> Picks:
        """By real divergence, sequence by sequence; the plain option also with what it leaves of the budget spent."""
        count = min(judge.samples, SEQUENCES)
        lost = lambda found, some=count: float(judge(found, some).mean())
        mine, few = lost(picks), max(1, count // 4)
        near = [rival for rival in rivals[:TRIED] if lost(rival.picks, few) <= _FAR * lost(picks, few)] or rivals[:1]
        theirs = {rival.name: lost(rival.picks) for rival in near}
        best = min(near, key=lambda rival: theirs[rival.name])
        self._tell(best, theirs[best.name], mine, count)
        if theirs[best.name] >= mine:
            return picks
        return fuller if lost(fuller := self._fuller(table, findings, best.picks)) < theirs[best.name] else best.picks

    def _fuller(self, table: Table, findings: Findings, picks: Picks) -> Picks:
        """A selection with what it leaves of the budgets spent on upgrades."""
        limits = self.limits()
        if "bytes" in limits:
            limits["bytes"] = table.cost(picks) + limits["bytes"] - self.exact_bytes(table, picks, findings)
        found = fill(table, picks, limits)
        return found if self.exact_bytes(table, found, findings) <= self.limits().get("bytes", math.inf) else picks

    def _foretold(self, table: Table, picks: Picks, best: Rival) -> Picks:
        """By forecast, where nothing can be judged."""
        self._tell(best, best.harm, table.harm(picks), 0)
        return best.picks if best.harm < table.harm(picks) else picks

    def _smaller(self, table: Table, findings: Findings, picks: Picks, judge: PlanJudge, rivals: list[Rival]) -> Picks:
        """The smallest plain option that loses no more than the budget allows, where it is smaller than the choice."""
        assert self.budget.loss is not None
        size = self.exact_bytes(table, picks, findings)
        for rival in sorted(rivals, key=lambda rival: rival.bytes):
            if rival.bytes < size and (rise := self._rise(rival.picks, judge)) <= self.budget.loss:
                self.report["plain"] = rival.told() | {"taken": True, "rise": rise, "chosen_bytes": size, "sequences": judge.samples}
                self.report["events"].append(
                    f"choice: {rival.name} on every layer that takes it keeps the loss too, in {readable(rival.bytes)} where the choice takes "
                    f"{readable(size)}; it is taken."
                )
                return rival.picks
        return picks

    def surpassed(self, table: Table, findings: Findings, picks: Picks, lost: Callable[[int], Sequence[float]]) -> Rival | None:
        """The plain option that was measured to lose less than what was made of ``picks``, which loses ``lost(n)`` on ``n`` rows, if there is one."""
        rivals = [rival for rival in self.rivals(table, findings) if rival.picks != picks and rival.tried is not None and rival.tried.rows]
        if not rivals:
            return None
        best = rivals[0]
        assert best.tried is not None
        rows = lost(len(best.tried.rows))
        count = min(len(best.tried.rows), len(rows))
        theirs, mine = (float(np.mean(found[:count])) for found in (best.tried.rows, rows))
        self.report["events"] = []
        self._tell(best, theirs, mine, count)
        return best if theirs < mine else None

    def _tell(self, rival: Rival, theirs: float, mine: float, sequences: int) -> None:
        """Note how the best plain option compares, and as an event where it is taken."""
        self.report["plain"] = rival.told() | {"taken": theirs < mine, "lost": theirs, "chosen": mine, "sequences": sequences}
        if theirs < mine:
            how = f"on {sequences} validation sequences" if sequences else "by the forecast"
            who = self.report.get("allocator", self.request.allocator)
            self.report["events"].append(
                f"choice: {rival.name} on every layer that takes it loses {theirs:.3g} {how}, what {who} chose {mine:.3g}; "
                "the plain option is taken."
            )

    def _spent(self, table: Table, findings: Findings, limits: dict[str, float], judge: Judge | None) -> Picks:
        """Choose, then spend what the header's estimate held back: the table assumes long offsets."""
        choose = ALLOCATORS[self.request.allocator] if judge is not None or self.request.allocator != "auto" else _near
        seconds = self.request.search_time if judge is not None else 0.0
        best = choose(table, limits, judge, seed=self.request.seed, seconds=seconds)
        for _ in range(4 if "bytes" in limits else 0):
            room = {**limits, "bytes": table.cost(best) + limits["bytes"] - self.exact_bytes(table, best, findings)}
            tried = [fill(table, best, room)]
            if self.request.allocator not in JUDGED or judge is None:
                beside = {"known": tried[0]} if choose is _near else {}
                tried.append(choose(table, room, judge, seed=self.request.seed, seconds=0.0, **beside))
            better = [
                picks for picks in tried
                if table.harm(picks) < table.harm(best) and self.exact_bytes(table, picks, findings) <= limits["bytes"] and table.fits(picks, room)
                and (judge is None or judge(picks, judge.samples).mean() <= judge(best, judge.samples).mean())
            ]  # fmt: skip
            if not better:
                break
            best = min(better, key=table.harm)
        return best

    def forced(self, table: Table, picks: Picks) -> list[str]:
        """Events: cuts that were made where layers below had no grid to be rounded to instead."""
        weights = {site: found for site, found in table.choices.items() if site in table.parents and site not in table.children}
        rounds = lambda text: text != GONE and Option.parse(text).rounds
        bare = {site for site, found in weights.items() if not any(rounds(one.option) for one in found)}
        cut = {table.parents[site] for site in bare} & {
            site for site, index in picks.items() if level_of(table.choices[site][index].option) not in (KEEP, GONE)
        }
        return [f"{site}: cut, and no integer grid of the menu fits {listed(sorted(b for b in bare if table.parents[b] == site))}; "
                "another --group may lose less." for site in sorted(cut)]  # fmt: skip

    def exact_bytes(self, table: Table, picks: Picks, findings: Findings) -> int:
        """Bytes of the files a selection gives, header and all."""
        return exact_bytes(self.sizing, table, picks, findings)

    def _smallest(self, table: Table, findings: Findings, limits: Mapping[str, float], judge: PlanJudge | None) -> float:
        """Fewest bytes at which held-out perplexity, on validation text, rises by no more than the budget says; by bisection."""
        assert self.budget.loss is not None
        if judge is None or not self.subject.model.is_causal:
            raise ModelError(f"--loss: needs perplexity, {self.subject.model.name} is no causal language model. Pass another budget.")
        most = max(table.cost(table.best(lambda _, choice: (choice.harm, float(choice.bytes)))), table.cost(table.cheapest()))
        high, low = min(limits.get("bytes", math.inf), most), table.cost(table.cheapest())
        at = lambda size: self._rise(integer_program(table, {**limits, "bytes": size}), judge)
        rise = at(high)
        if rise > self.budget.loss:
            raise BudgetError(
                f"budget {self.budget}: at {readable(high)}, the most the other budgets allow, perplexity rises by {100 * rise:.2f} %. "
                "Allow more loss, or more bytes."
            )
        while high - low > 0.002 * high:
            middle = math.sqrt(high * low)
            if at(middle) <= self.budget.loss:
                high = middle
            else:
                low = middle
        return math.floor(high)

    def _rise(self, picks: Picks, judge: PlanJudge) -> float:
        """Share by which perplexity rises on the judge's sequences."""
        quality = judge.quality(picks, judge.samples)
        return float(np.exp(np.mean(quality.candidate) - np.mean(quality.original)) - 1)
