"""Auto: the integer program's answer, improved by what the real divergence teaches."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from scipy.special import stdtrit

from modicum.allocate._cache import Cached
from modicum.allocate._family import Judge, fill, judged, near, pace, step, switched
from modicum.allocate._learned import NOISE, Learned, Terms
from modicum.allocate._program import least_harm
from modicum.allocate.integer_program import integer_program
from modicum.allocate.uniform import uniform
from modicum.core.plan import Choice, Limits, Picks, Table

# Selections judged on the small sample where no time is given.
EVALUATIONS = 60
# The small sample: one of how many sequences, at the least.
PART, LEAST = 8, 4
# Selections judged side by side, those of them that go on to all sequences, and rounds without progress before the end.
ROUND, FINALISTS, PATIENCE = 6, 1, 2
# Proposals of a round: exchanges the corrected table thinks nearly free, random ones, programs of drawn tables, changes of structure.
TIES, SWITCHES, DRAWS, STRUCTURES = 64, 24, 2, 2
# Proposals that are filled and ranked again.
SHORTLIST = 24
# Standard deviations by which a proposal may be hoped better than expected.
HOPE = 2.5
# Standard errors that an improvement must exceed, on all sequences; on some, how sure it must be.
BOUND, SURE = 1.0, 0.975
# Share of the divergence that a round must gain to count as progress.
WORTH = 0.005
# Selections that time must allow to be judged on the small sample: the starts, and two rounds.
_SMALL = 16
# Powers of the harms in other starts: below one, large harms are thought exaggerated.
POWERS = (0.8, 1.25)
# Single changes of which exchanges are made.
_MOVES = 600
# Share of the harm within which an integer program's answer is good enough to be judged.
_GAP = 1e-3
# Most seconds of one integer program, and its share of the seconds given.
_SOLVING, _PART = 10.0, 1 / 20

_Key = tuple[int, ...]


@judged
def auto(table: Table, limits: Limits, judge: Judge | None = None, *, seed: int = 0, seconds: float = 0.0) -> Picks:
    """Improve the integer program's answer by selections judged on the real divergence, and correct the harms by what was judged.

    Starts are the integer program's answer, that on tempered harms, and the uniform one. Then in rounds: a regression corrects the harms
    (``Learned``); the integer program on the corrected table, and on some drawn from what is still possible, exchanges of two sites that
    the corrected table thinks nearly free, random exchanges, and changed structure with the rest solved anew make a pool; those with the
    least expected divergence less ``HOPE`` standard deviations are judged on an eighth of the sequences. The best of all these races the best
    selection so far: both are judged on twice as many sequences again and again, and it leaves as soon as it loses more on them. On all sequences it
    replaces the best where its mean is lower by more than ``BOUND`` standard errors of the paired differences, or lower at all and not more
    harmful by the table. So the answer is never worse than the integer program's on the judge's sequences.

    Ends after ``PATIENCE`` rounds whose gains are inside the noise or less than ``WORTH`` of the divergence, and when ``seconds`` are spent or, at 0,
    after ``EVALUATIONS`` selections. A round that would not fit, as long as the last one, is not begun; the starts are judged in any case. Where
    judging is so slow that ``seconds`` allow few selections on an eighth, they are first judged on fewer sequences, down to one. A race that time
    ends is decided where the whole ``SURE`` interval of the paired differences speaks for the new selection. Whether time is short is all that is
    asked of the clock.

    *Needs and cost:* a judge; a few dozen judgements of an eighth of the sequences and a race per round; three and more integer
    programs per round. *Reduces to* ``integer_program`` without a judge.
    """
    began = time.monotonic()
    start = integer_program(table, limits, seconds=seconds)
    if judge is None or not start or not table.fits(start, limits):
        return start
    small = min(judge.samples, max(LEAST, -(-judge.samples // PART)))
    if seconds > 0 and small > 1:
        small = min(small, max(1, int(seconds / _SMALL / pace(judge, start))))
    return _Search(Terms.of(table), limits, Cached(judge, probe=small), start, np.random.default_rng(seed), seconds, began).run()


@dataclass
class _Search:
    """The best selection so far, and what all that were met lose on the sequences that they were judged on; which of them have raced."""

    terms: Terms
    limits: Limits
    judge: Cached
    best: Picks
    chance: np.random.Generator
    seconds: float
    began: float
    met: dict[_Key, Picks] = field(default_factory=dict)
    rows: dict[_Key, np.ndarray] = field(default_factory=dict)
    raced: set[_Key] = field(default_factory=set)
    each: float = 0.0

    @property
    def table(self) -> Table:
        return self.terms.table

    @property
    def spent(self) -> float:
        return time.monotonic() - self.began

    def key(self, picks: Picks) -> _Key:
        return tuple(picks[site] for site in self.table.choices)

    def run(self) -> Picks:
        self.meet(self.new(self.starts()))
        self.improve()
        idle, took = 0, 0.0
        while idle < PATIENCE and (count := self.affordable(self.spent + took)):
            began_round = time.monotonic()
            learned = self.learned()
            ranked = hopeful(learned, [picks for picks in self.proposals(learned) if self.table.fits(picks, self.limits)])
            self.meet(hopeful(learned, self.new(ranked, SHORTLIST))[:count])
            idle = 0 if self.improve() > WORTH else idle + 1
            took = time.monotonic() - began_round
        return self.best

    def affordable(self, spent: float) -> int:
        """How many selections the next round may judge."""
        if self.seconds > 0:
            return ROUND if spent <= self.seconds else 0
        return max(min(ROUND, EVALUATIONS - len(self.rows)), 0)

    def starts(self) -> Iterator[Picks]:
        yield self.best
        yield uniform(self.table, self.limits)
        for power in POWERS:
            yield self.solved(self.terms.with_harms(np.maximum(self.terms.harms, 0) ** power))

    def new(self, selections: Iterable[Picks], most: int | None = None) -> list[Picks]:
        """The first that fit and were not met before, with nothing left unspent."""
        found: dict[_Key, Picks] = {}
        for picks in selections:
            if len(found) == most:
                break
            filled = fill(self.table, picks, self.limits)
            if self.table.fits(filled, self.limits) and self.key(filled) not in self.met:
                found[self.key(filled)] = filled
        return list(found.values())

    def meet(self, candidates: list[Picks]) -> None:
        """Judge on the small sample."""
        self.met |= {self.key(picks): picks for picks in candidates}
        self.judged([self.key(picks) for picks in candidates], self.judge.probe)

    def judged(self, keys: list[_Key], count: int) -> None:
        """Judge selections on the first ``count`` sequences."""
        began, fresh = time.monotonic(), sum(max(0, count - len(self.rows.get(key, ()))) for key in keys)
        for key, outcome in zip(keys, self.judge.many([self.met[key] for key in keys], count)):
            self.rows[key] = outcome if len(outcome) > len(self.rows.get(key, ())) else self.rows[key]
        if fresh:
            self.each = (time.monotonic() - began) / fresh

    def improve(self) -> float:
        """Let the most promising race the best; by what share of its divergence the best became better."""
        mean = lambda key: float(self.rows[key][: self.judge.probe].mean())
        before = self.key(self.best)
        finalists = sorted((key for key in self.rows if key not in self.raced and mean(key) < mean(before)), key=mean)[:FINALISTS]
        for key in finalists:
            self.race(key)
        for key in sorted(self.raced, key=lambda key: float(self.gains(key).mean()), reverse=True):
            if self.better(key):
                self.best = self.met[key]
                self.raced.add(before)
                return share(self.rows[before], self.rows[key])
        return 0.0

    def race(self, key: _Key) -> None:
        """Judge a finalist and the best on more and more sequences, as long as the finalist loses less on them, and time is left."""
        self.raced.add(key)
        best = self.key(self.best)
        while (count := len(self.gains(key))) < self.judge.samples and float(self.gains(key).mean()) > 0:
            further = min(2 * count, self.judge.samples)
            left = 2 * further - len(self.rows[key]) - min(further, len(self.rows[best]))
            if 0 < self.seconds < self.spent + self.each * left:
                break
            self.judged([best, key], further)

    def gains(self, key: _Key) -> np.ndarray:
        """What a selection loses less than the best, on the sequences that both were judged on."""
        now, other = self.rows[self.key(self.best)], self.rows[key]
        count = min(len(now), len(other))
        with np.errstate(invalid="ignore"):  # both may have ruined the model
            return now[:count] - other[:count]

    def better(self, key: _Key) -> bool:
        """Whether a finalist replaces the best."""
        gains = self.gains(key)
        if not gains.mean() > 0:
            return False
        if not np.isfinite(gains).all():
            return True
        if len(gains) < self.judge.samples:
            return len(gains) > 1 and bool(gains.mean() > stdtrit(len(gains) - 1, SURE) * standard_error(gains))
        harm = self.table.harm
        return harm(self.met[key]) <= harm(self.best) or bool(gains.mean() > BOUND * standard_error(gains))

    def learned(self) -> Learned:
        """The regression on everything judged."""
        kept = [key for key, outcome in self.rows.items() if np.isfinite(outcome).all()]
        means, errors = np.array([self.overall(key) for key in kept]).reshape(-1, 2).T
        return Learned(self.terms, self.terms.rows(self.met[key] for key in kept), means, errors)

    def overall(self, key: _Key) -> tuple[float, float]:
        """Mean over all sequences that the best selection was judged on, and its standard error.

        Where some of them were not judged, the best selection's ratio of the two carries over; the error of that is the standard error
        of the differences from the best selection's outcome times a number.
        """
        best = self.rows[self.key(self.best)]
        other = self.rows[key][: len(best)]
        here = best[: len(other)]
        if len(other) == len(best) or not 0 < here.mean() < np.inf:
            return float(other.mean()), 0.0
        ratio = float(best.mean() / here.mean())
        unseen = (1 - len(other) / len(best)) ** 0.5
        return ratio * float(other.mean()), ratio * unseen * standard_error(other - here * (other.mean() / here.mean()))

    def proposals(self, learned: Learned) -> Iterator[Picks]:
        """What the next round may judge."""
        expected = learned.table()
        yield self.solved(expected)
        for _ in range(DRAWS):
            yield self.solved(learned.table(self.chance))
        yield from (self.solved(expected, structure) for structure in self.structures())
        yield from near_ties(expected, self.best, self.limits, TIES)
        for _ in range(SWITCHES):
            if (picks := switched(self.table, self.best, self.limits, self.chance, int(self.chance.integers(1, 3)))) is not None:
                yield picks

    def solved(self, table: Table, structure: Picks | None = None) -> Picks:
        """The least harm by a table, under a structure where one is given."""
        known = near(table, self.limits, structure)
        if not table.fits(known, self.limits):
            return known
        seconds = min(_SOLVING, _PART * self.seconds) if self.seconds > 0 else _SOLVING
        return least_harm(table, self.limits, known, structure, seconds=seconds, gap=_GAP)

    def structures(self) -> Iterator[Picks]:
        """Choices of the sites that others depend on, one of them moved a rung."""
        moves = [(site, by) for site in self.table.children for by in (1, -1)]
        for place in self.chance.permutation(len(moves))[:STRUCTURES]:
            if (moved := step(self.table, self.best, moves[place][0], self.limits, moves[place][1])) is not None:
                yield {site: moved[site] for site in self.table.children}


def share(before: np.ndarray, after: np.ndarray) -> float:
    """By what share a divergence fell, on the sequences that both were judged on; inside the noise, by none."""
    count = min(len(before), len(after))
    gains, now = before[:count] - after[:count], float(before[:count].mean())
    if not np.isfinite(now):
        return np.inf
    return float(gains.mean()) / max(now, 1e-300) if gains.mean() > standard_error(gains) else 0.0


def standard_error(values: np.ndarray) -> float:
    """Of the mean; 0 for a single value, which has none."""
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0


def hopeful(learned: Learned, pool: list[Picks]) -> list[Picks]:
    """Selections by expected divergence less ``HOPE`` standard deviations, the least first, each as if those before it were judged."""
    mean, covariance = learned.predict(learned.terms.rows(pool))
    unit = max(float(np.abs(mean).max(initial=0.0)), 1e-300)
    least = max(1e-9 * float(covariance.diagonal().max(initial=0.0)), 1e-300)
    order: list[int] = []
    while len(order) < len(pool):
        hoped = mean - HOPE * np.sqrt(np.maximum(covariance.diagonal(), 0))
        hoped[order] = np.inf
        # Rounded: which of two equals comes first must not hang on the last bits of a matrix product.
        order.append(first := int(np.round(hoped / unit, 9).argmin()))
        known = covariance[first]
        told = known / np.sqrt(max(known[first] + (NOISE * mean[first]) ** 2, least))
        covariance = covariance - np.outer(told, told)
    return [pool[place] for place in order]


def near_ties(table: Table, picks: Picks, limits: Limits, count: int) -> list[Picks]:
    """The ``count`` selections of least harm among those that fit and differ from ``picks`` in one site or two; structure stays."""
    changes = _changes(table, picks, limits)
    one, other = np.triu_indices(len(changes), 1)
    left = np.array([most - table.cost(picks, resource) for resource, most in limits.items()])
    fitting = (changes[one, 0] != changes[other, 0]) & (changes[one, 3:] + changes[other, 3:] <= left).all(1)
    one, other = one[fitting], other[fitting]
    order = np.argsort(changes[one, 2] + changes[other, 2], kind="stable")[:count]
    sites = list(table.choices)
    named = lambda pair: {sites[int(place)]: int(index) for place, index in changes[pair, :2] if place >= 0}
    return [{**picks, **named([one[k], other[k]])} for k in order]


def _changes(table: Table, picks: Picks, limits: Limits) -> np.ndarray:
    """Rows of (site, choice, harm added, each resource added): no change at all, and the single changes that cost least at one price."""
    rows = [(-1.0, 0.0, 0.0, *([0.0] * len(limits)))]
    for place, (site, found) in enumerate(table.choices.items()):
        if site not in table.children:
            now, others = found[picks[site]], (index for index in table.allowed(site, picks) if index != picks[site])
            rows += [(place, index, found[index].harm - now.harm, *_added(now, found[index], limits)) for index in others]
    changes = np.array(rows)
    loads = changes[:, 3:] @ np.array([1 / max(most - table.fixed.get(resource, 0), 1e-30) for resource, most in limits.items()])
    gains = (changes[:, 2] < 0) & (loads > 0)
    price = (-changes[gains, 2] / loads[gains]).max(initial=0.0)
    cheapest = np.argsort(changes[1:, 2] + price * loads[1:], kind="stable")[:_MOVES]
    return changes[[0, *(cheapest + 1)]]


def _added(now: Choice, other: Choice, limits: Limits) -> list[float]:
    return [other.spends(resource) - now.spends(resource) for resource in limits]
