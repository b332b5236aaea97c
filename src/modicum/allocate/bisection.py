"""Bisection: sites ranked by what they harm, alone and together, go down level by level to where it is enough."""

from __future__ import annotations

import bisect
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from modicum.allocate._cache import Cached, cached
from modicum.allocate._family import Judge, fill, judged, skeleton
from modicum.allocate.integer_program import integer_program
from modicum.core.errors import BudgetError
from modicum.core.plan import Limits, Picks, Table

# Most pairs of neighbouring sites whose interaction is measured.
PAIRS = 32
# Share of the judge's sequences on which it is measured.
SHARE = 1 / 4
# Pairs measured side by side.
_TOGETHER = 8


@judged
def bisection(
    table: Table, limits: Limits, judge: Judge | None = None, *, seed: int = 0, seconds: float = 0.0, pairs: int = PAIRS
) -> Picks:
    """Send the least sensitive sites down, level by level, until the limits hold (arXiv 2306.04879).

    Sites start at their least harmful option. At every level they are ranked by their predicted harm, which is the second order's of the
    weight error, and by what they harm together with their neighbours: ``h_i + ½ Σ_j ρ_ij √(h_i h_j)``. The interaction is measured on the
    real divergence, ``ρ_ij = (KL_ij - KL_i - KL_j) / √(KL_i KL_j)``, with both sites at the middle of their levels and all others whole. As
    many sites of the ranking go down as the limits ask for; what they spend is known, so no judgement is needed to find the place. What is
    left over is spent. Sites that others depend on stay whole unless nothing would fit then. Where nothing on the way down fits, which
    several limits can bring about, the integer program's answer is returned.

    *Needs and cost:* a judge; at most 3 · ``pairs`` + 1 selections on a quarter of the sequences, fewer where ``seconds`` are spent before.
    *Reduces to* the ranking by the Hessian alone at ``pairs=0``, which needs no judge. *Raises* ``SettingError`` where a judge is needed
    and none was given.

    *Differences from the paper:* there a tolerance says where to stop, which is ``within``; here a budget does. Only neighbours in call
    order are measured, those of the largest harms.
    """
    measuring = cached(judge, "bisection") if pairs > 0 else None
    descent = Descent.of(table, skeleton(table, limits), limits)
    interactions = descent.measured(measuring, pairs, seconds) if measuring is not None else {}
    picks = descent.until(limits, interactions)
    return integer_program(table, limits) if picks is None else fill(table, picks, limits)


def within(table: Table, judge: Judge, tolerance: float, *, pairs: int = PAIRS, share: float = SHARE) -> Picks:
    """The smallest selection whose divergence stays within a tolerance, in nats per token: the paper's own question.

    Level by level, as many sites of the ranking go down as the mean over all sequences allows, found by bisection; those that went down are
    ranked again for the next level. Sites that others depend on stay whole. Interactions are measured on ``share`` of the sequences.

    *Cost:* besides these, log₂(sites) judgements of all sequences per level. *Raises* ``BudgetError`` where keeping everything is not
    within the tolerance already.
    """
    known = cached(judge, "bisection")
    diverges = lambda selection: float(known(selection, known.samples).mean())
    picks = table.best(lambda site, choice: (choice.harm, float(choice.bytes)))
    if not (least := diverges(picks)) <= tolerance:
        raise BudgetError(f"bisection: a divergence of {tolerance:g} must be reachable, keeping everything gives {least:g}. Allow more.")
    descent = Descent.of(table, picks, {"bytes": table.cost(picks)})
    interactions = descent.measured(known, pairs, share=share) if pairs > 0 else {}
    going: Iterable[str] = descent.rungs
    for level in range(1, descent.levels):
        ranked = descent.ranked(level, going, interactions)
        counts = range(1, len(ranked) + 1)
        count = bisect.bisect_right(counts, tolerance, key=lambda count: diverges(descent.lowered(picks, ranked[:count], level)))
        picks, going = descent.lowered(picks, ranked[:count], level), ranked[:count]
    return picks


@dataclass(frozen=True)
class Descent:
    """The levels of sites that nothing depends on, from the least harm to the least spent, without those that others better in both."""

    table: Table
    start: Picks
    rungs: dict[str, list[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, table: Table, structure: Picks, limits: Limits) -> Descent:
        """Levels under the structure of a selection."""
        rungs = {site: _rungs(table, site, structure, limits) for site in table.choices if site not in table.children}
        start = {site: rungs[site][0] if site in rungs else structure[site] for site in table.choices}
        return cls(table, start, rungs)

    @property
    def levels(self) -> int:
        """Most levels of a site."""
        return max((len(found) for found in self.rungs.values()), default=0)

    def harm(self, site: str, level: int) -> float:
        """Predicted harm of a site at a level, or at its last."""
        found = self.rungs[site]
        return self.table.choices[site][found[min(level, len(found) - 1)]].harm

    def lowered(self, picks: Picks, sites: Iterable[str], level: int) -> Picks:
        """A selection with some sites at a level."""
        return picks | {site: self.rungs[site][level] for site in sites}

    def ranked(self, level: int, sites: Iterable[str], interactions: dict[tuple[str, str], float]) -> list[str]:
        """Sites that have the level, the least sensitive first."""
        sensitivity = {site: self.harm(site, level) for site in self.rungs}
        for (one, other), strength in interactions.items():
            together = strength * (self.harm(one, level) * self.harm(other, level)) ** 0.5 / 2
            sensitivity[one], sensitivity[other] = sensitivity[one] + together, sensitivity[other] + together
        return sorted((site for site in sites if level < len(self.rungs[site])), key=sensitivity.__getitem__)

    def until(self, limits: Limits, interactions: dict[tuple[str, str], float]) -> Picks | None:
        """The first selection on the way down that fits."""
        path = [(site, self.rungs[site][level]) for level in range(1, self.levels) for site in self.ranked(level, self.rungs, interactions)]
        picks, left = dict(self.start), np.array([most - self.table.cost(self.start, resource) for resource, most in limits.items()])
        for site, index in path:
            if (left >= 0).all():
                break
            now, lower = self.table.choices[site][picks[site]], self.table.choices[site][index]
            left += [now.spends(resource) - lower.spends(resource) for resource in limits]
            picks[site] = index
        return picks if self.table.fits(picks, limits) else None

    def measured(self, judge: Cached, pairs: int, seconds: float = 0.0, share: float = SHARE) -> dict[tuple[str, str], float]:
        """Interaction of neighbours in call order, relative to the geometric mean of what each harms alone; the largest harms first."""
        size = lambda pair: self.harm(pair[0], self.middle(pair[0])) * self.harm(pair[1], self.middle(pair[1]))
        free = [site for site, found in self.rungs.items() if len(found) > 1]
        chosen, began = sorted(pairwise(free), key=size, reverse=True)[:pairs], time.monotonic()
        found: dict[tuple[str, str], float] = {}
        for place in range(0, len(chosen), _TOGETHER):
            if place and 0 < seconds <= time.monotonic() - began:
                break
            found |= self._interactions(judge, chosen[place : place + _TOGETHER], share)
        return found

    def middle(self, site: str) -> int:
        """The level at which a site's interactions are measured."""
        return len(self.rungs[site]) // 2

    def _interactions(self, judge: Cached, pairs: list[tuple[str, str]], share: float) -> dict[tuple[str, str], float]:
        groups = list(dict.fromkeys([(), *((site,) for pair in pairs for site in pair), *pairs]))
        lowered = [self.start | {site: self.rungs[site][self.middle(site)] for site in group} for group in groups]
        outcomes = judge.many(lowered, max(1, round(share * judge.samples)))
        found = {group: float(outcome.mean()) for group, outcome in zip(groups, outcomes)}
        return {pair: _interaction(found[pair], found[pair[:1]], found[pair[1:]], found[()]) for pair in pairs}


def _rungs(table: Table, site: str, picks: Picks, limits: Limits) -> list[int]:
    """Choices of a site that stand and that no other betters in both load and harm, the least harm first."""
    spent = lambda index: (table.load(table.choices[site][index], limits), table.choices[site][index].harm)
    found: list[int] = []
    for index in sorted(table.allowed(site, picks), key=spent):
        if not found or table.choices[site][index].harm < table.choices[site][found[-1]].harm:
            found.append(index)
    return found[::-1]


def _interaction(both: float, one: float, other: float, none: float) -> float:
    """Of two errors, between -2 and 2 as the second order bounds it."""
    scale = max((one - none) * (other - none), 0.0) ** 0.5
    return float(np.clip((both - one - other + none) / scale, -2.0, 2.0)) if scale > 0 else 0.0
