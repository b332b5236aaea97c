"""NSGA-II: structure and bits searched at once, by a genetic algorithm on a predictor that is refit on what was judged."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from modicum.allocate._cache import cached
from modicum.allocate._family import Judge, fill, judged
from modicum.allocate.integer_program import integer_program
from modicum.allocate.random import random, spread
from modicum.core.errors import SettingError
from modicum.core.plan import Limits, Picks, Table

# Selections judged before the first predictor, then in each round; rounds where no time is given.
FIRST, ROUND, ROUNDS = 16, 8, 8
# Of the genetic algorithm in each round; selections of the first generation that are drawn at random.
POPULATION, GENERATIONS, RANDOM = 80, 30, 12
# Sequences that selections are judged on, and how many of the best are then judged on all.
SAMPLES, FINALISTS = 8, 4
# Near the limit: shares of what may be spent between which an allocation is searched.
BAND = (0.8, 1.0)
# Prices of load at which the table alone is solved, for a population to start from.
_PRICES = 24
# Penalties tried by the predictor.
_PENALTIES = np.geomspace(1e-4, 10.0, 11)
# Divergences and harms are not told apart below this share of the largest.
_SMALLEST = 1e-9
_TINY = 1e-300

Point = tuple[Picks, float, float]
"""A selection, what it spends, and its real KL per token."""


@judged
def nsga2(
    table: Table, limits: Limits, judge: Judge | None = None, *, seed: int = 0, seconds: float = 0.0, rounds: int = ROUNDS
) -> Picks:  # fmt: skip
    """Search structure and bits at once by NSGA-II on a light predictor, refit on what was judged.

    Genes are the choices of all sites, those that others depend on included. In each round NSGA-II minimises two objectives, the divergence
    as predicted and the share of the limits that is spent, between the shares of ``BAND``; the fitting selections it ends with, filled up
    to the limits, are judged, those of least predicted divergence first; the predictor is fitted anew. Judged at first: the integer
    program's answer, selections the table alone prefers near the limit, and random ones. The best judged that fits is the answer, never
    worse than the integer program's on the judge's sequences.

    The predictor is a ridge regression of log KL on the log of the predicted harm and on the genes, one-hot, each by its share of that harm,
    alone and by site and by option; its penalty is the one of least leave-one-out error.

    *Needs and cost:* the extra ``search`` (pymoo) and a judge; ``FIRST + ROUND · rounds`` selections on ``SAMPLES`` sequences and ``FINALISTS`` on
    all. ``seconds`` ends it after the round in which they are spent, and lets it go on beyond ``rounds`` until then; it ends earlier where
    nothing new is proposed. *Reduces to* ``integer_program`` where nothing else was judged better. *Raises:* ``SettingError`` without pymoo or
    judge.

    *Differences from the paper:* there is no super-network; genes are choices on the given model, and what a selection costs is known, so
    that only the divergence is predicted.
    """
    judge = _ready(judge)
    begun, start = time.monotonic(), integer_program(table, limits)
    if not start or not table.fits(start, limits):
        return start
    search = _Search(_Space(table, limits), judge, BAND, np.random.default_rng(seed), begun)
    likely = [start, *(fill(table, picks, limits) for picks in search.priced(FIRST // 2 - 1))]
    search.judge_new([*likely, *(random(table, limits, seed=search.drawn()) for _ in range(FIRST - len(likely)))])
    search.run(rounds, seconds, _filled)
    finalists = sorted((row for row in search.known if search.fits(row)), key=lambda row: search.known[row])[:FINALISTS]
    final = search.confirmed([search.row(start), *finalists])
    return search.picks(min(final, key=lambda row: final[row]))


def front(
    table: Table, judge: Judge | None, *, seed: int = 0, rounds: int = ROUNDS, seconds: float = 0.0, resource: str = "bytes"
) -> list[Point]:  # fmt: skip
    """Selections of which none judged spends less and diverges less, from the one that spends least: (picks, cost, KL).

    As ``nsga2``, over all that can be spent of ``resource``: each round judges predicted Pareto selections as far apart as can be. KL is the mean
    over all of the judge's sequences. *Raises:* ``SettingError`` without pymoo or judge.
    """
    judge = _ready(judge)
    whole = table.cost(table.best(lambda _, choice: (choice.harm, choice.spends(resource))), resource)
    search = _Search(_Space(table, {resource: whole}), judge, (-math.inf, 1.0), np.random.default_rng(seed), time.monotonic())
    likely = search.priced(FIRST // 2)
    search.judge_new([*likely, *spread(table, FIRST - len(likely), search.drawn(), resource)])
    search.run(rounds, seconds, _apart)
    final = search.confirmed(_undominated(search.space, search.known))
    points = [(search.picks(row), table.cost(search.picks(row), resource), kl) for row, kl in _undominated(search.space, final).items()]
    return sorted(points, key=lambda point: point[1])


Row = tuple[int, ...]
"""Choice indices in the table's order of sites."""


class _Space:
    """Selections as rows of choice indices (selections, sites), all at once."""

    def __init__(self, table: Table, limits: Limits):
        self.table, self.limits, self.sites = table, limits, list(table.choices)
        counts = [len(found) for found in table.choices.values()]
        self.counts, self.start = np.array(counts, dtype=int), np.cumsum([0, *counts])[:-1]
        flat = [choice for found in table.choices.values() for choice in found]
        self.harms = np.array([choice.harm for choice in flat])
        texts = sorted({choice.option for choice in flat})
        self.options = np.array([texts.index(choice.option) for choice in flat], dtype=int)
        self.spends = {resource: np.array([choice.spends(resource) for choice in flat]) for resource in limits}
        self.room = {resource: max(most - table.fixed.get(resource, 0), 1e-30) for resource, most in limits.items()}

    def rows(self, found: Iterable[Row]) -> np.ndarray:
        """Rows as an array (selections, sites)."""
        return np.array(list(found), dtype=int).reshape(-1, len(self.sites))

    def flat(self, rows: np.ndarray) -> np.ndarray:
        """Places of the choices among those of all sites."""
        return self.start + rows

    def loads(self, rows: np.ndarray) -> np.ndarray:
        """Share that is spent of what the choices may spend of the scarcest resource, (selections,)."""
        places = self.flat(rows)
        return np.max([amounts[places].sum(1) / self.room[resource] for resource, amounts in self.spends.items()], axis=0)

    def settled(self, rows: np.ndarray) -> np.ndarray:
        """Rows with every choice that does not stand exchanged, as ``Table.settle`` does."""
        rows = rows.copy()
        for child, parent, standing in self._repairs:
            rows[:, child] = standing[rows[:, parent], rows[:, child]]
        return rows

    @cached_property
    def _repairs(self) -> list[tuple[int, int, np.ndarray]]:
        """Child, parent, and what each choice of the child becomes under each of the parent."""
        place = {site: number for number, site in enumerate(self.sites)}
        found = []
        for child in self.sites:
            if (parent := self.table.parents.get(child)) is not None:
                pair = Table({parent: self.table.choices[parent], child: self.table.choices[child]}, parents={child: parent})
                shape = (self.counts[place[parent]], self.counts[place[child]])
                standing = [[pair.settle({parent: above, child: now})[child] for now in range(shape[1])] for above in range(shape[0])]
                found.append((place[child], place[parent], np.array(standing, dtype=int)))
        return found


class _Predictor:
    """Log KL of rows, by ridge regression of its ratio to the harm on judged ones."""

    def __init__(self, space: _Space, rows: np.ndarray, divergences: np.ndarray):
        self.space = space
        rows, divergences = rows[np.isfinite(divergences)], divergences[np.isfinite(divergences)]
        logs = np.log(np.maximum(divergences, _SMALLEST * divergences.max(initial=_TINY)))
        self.floor = max(_SMALLEST * self._harms(rows).sum(1).max(initial=0.0), _TINY)
        trend = self._trend(rows)
        # By the table alone log KL is the log of the harm and a constant.
        self.center, self.constant = (float(trend.mean()), float((logs - trend).mean())) if len(rows) else (0.0, 0.0)
        self.weights = _ridge(self._features(rows), logs - trend - self.constant)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Predicted log KL, (selections,)."""
        return self._trend(rows) + self.constant + self._features(rows) @ self.weights

    def _harms(self, rows: np.ndarray) -> np.ndarray:
        return np.abs(self.space.harms[self.space.flat(rows)])

    def _trend(self, rows: np.ndarray) -> np.ndarray:
        return np.log(np.maximum(self._harms(rows).sum(1), self.floor))

    def _features(self, rows: np.ndarray) -> np.ndarray:
        """(selections, features): the log of the harm, and the genes by their shares of it, each alone, by site and by option."""
        space, places, harms = self.space, self.space.flat(rows), self._harms(rows)
        shares = harms / np.maximum(harms.sum(1, keepdims=True), self.floor)
        choices = np.zeros((len(rows), len(space.harms)))
        np.put_along_axis(choices, places, shares, 1)
        options = np.zeros((len(rows), int(space.options.max(initial=0)) + 1))
        np.add.at(options, (np.arange(len(rows))[:, None], space.options[places]), shares)
        return np.concatenate([(self._trend(rows) - self.center)[:, None], choices, shares, options], 1)


def _ridge(features: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Weights (features,) at the penalty whose leave-one-out error is least, in closed form."""
    if len(features) < 2:
        return np.zeros(features.shape[1])
    values, vectors = np.linalg.eigh(features @ features.T)
    values, turned = np.maximum(values, 0.0), vectors.T @ wanted
    best = (math.inf, np.zeros(len(wanted)))
    for penalty in _PENALTIES * max(float(values.mean()), _TINY):
        dual = vectors @ (turned / (values + penalty))
        error = float(np.square(dual / (vectors**2 @ (1 / (values + penalty)))).mean())
        best = min(best, (error, dual), key=lambda found: found[0])
    return features.T @ best[1]


Chosen = Callable[["_Search", np.ndarray, _Predictor], list[Picks]]
"""Which of a round's selections are judged, in which order."""


@dataclass
class _Search:
    """What is known: mean KL on the first sequences by row."""

    space: _Space
    judge: Judge
    band: tuple[float, float]
    chance: np.random.Generator
    begun: float
    known: dict[Row, float] = field(default_factory=dict)

    def drawn(self) -> int:
        """Another seed."""
        return int(self.chance.integers(2**31))

    def row(self, picks: Picks) -> Row:
        return tuple(int(picks[site]) for site in self.space.sites)

    def picks(self, row: Row) -> Picks:
        return dict(zip(self.space.sites, map(int, row)))

    def fits(self, row: Row) -> bool:
        return self.space.table.fits(self.picks(row), self.space.limits)

    def judge_new(self, candidates: Iterable[Picks]) -> int:
        """Judge those not judged before, together; how many there were."""
        fresh = list(dict.fromkeys(row for picks in candidates if (row := self.row(picks)) not in self.known))
        samples = min(SAMPLES, self.judge.samples)
        for row, found in zip(fresh, self.judge.many([self.picks(row) for row in fresh], samples) if fresh else []):
            self.known[row] = float(np.mean(found))
        return len(fresh)

    def confirmed(self, rows: Iterable[Row]) -> dict[Row, float]:
        """Mean KL on all sequences."""
        rows = list(dict.fromkeys(rows))
        if self.judge.samples <= SAMPLES:
            return {row: self.known[row] for row in rows}
        return {row: float(np.mean(found)) for row, found in zip(rows, self.judge.many(list(map(self.picks, rows)), self.judge.samples))}

    def priced(self, count: int) -> list[Picks]:
        """Selections the table alone prefers, at prices of load: those whose load is within the band, or nearest to its end, evenly."""
        rows = list(dict.fromkeys(map(self.row, self._hull)))
        loads = self.space.loads(self.space.rows(rows))
        fitting = [place for place in np.argsort(loads, kind="stable") if loads[place] <= 1]
        near = [place for place in fitting if loads[place] >= self.band[0]] or fitting[-count:]
        evenly = np.linspace(0, len(near) - 1, min(count, len(near))).round().astype(int).tolist()
        return [self.picks(rows[near[place]]) for place in dict.fromkeys(evenly)]

    @cached_property
    def _hull(self) -> list[Picks]:
        table, limits = self.space.table, self.space.limits
        most = max(abs(table.harm(table.cheapest(limits))), _TINY)
        return [
            table.best(lambda _, choice, price=price: (choice.harm + price * table.load(choice, limits),))
            for price in most * np.geomspace(1e-5, 1e3, _PRICES)
        ]

    def run(self, rounds: int, seconds: float, chosen: Chosen) -> None:
        """Rounds of search and judgement."""
        done = 0
        while (time.monotonic() - self.begun < seconds) if seconds else (done < rounds):
            predictor = _Predictor(self.space, self.space.rows(self.known), np.array(list(self.known.values())))
            found = self.space.settled(_evolved(self.space, predictor, self._population(), self.band, self.drawn()))
            if not self.judge_new(chosen(self, found, predictor)[:ROUND]):
                break
            done += 1

    def _population(self) -> np.ndarray:
        """The best judged of the band, what the table alone prefers, the other judged, and random ones."""
        judged = sorted(self.known, key=lambda row: self.known[row])
        near = [row for row, load in zip(judged, self.space.loads(self.space.rows(judged))) if load >= self.band[0]][: POPULATION // 2]
        rows = list(dict.fromkeys([*near, *map(self.row, self._hull), *judged]))[: POPULATION - RANDOM]
        drawn = self.chance.integers(0, self.space.counts, (POPULATION - len(rows), len(self.space.sites)))
        return np.concatenate([self.space.rows(rows), self.space.settled(drawn)])


# Which of a round's selections are judged


def _filled(search: _Search, rows: np.ndarray, predictor: _Predictor) -> list[Picks]:
    """Those that fit, filled up to the limits, of least predicted divergence first."""
    table, limits = search.space.table, search.space.limits
    fitting = [row for row in map(tuple, rows.tolist()) if search.fits(row)]
    filled = dict.fromkeys(search.row(fill(table, search.picks(row), limits)) for row in fitting)
    fresh = [row for row in filled if row not in search.known]
    order = np.argsort(predictor(search.space.rows(fresh)), kind="stable")
    return [search.picks(fresh[place]) for place in order]


def _apart(search: _Search, rows: np.ndarray, predictor: _Predictor) -> list[Picks]:
    """Predicted Pareto selections, each as far as can be in load from those judged and those before it."""
    space = search.space
    fresh = [row for row in dict.fromkeys(map(tuple, rows.tolist())) if row not in search.known]
    left = list(_undominated(space, dict(zip(fresh, predictor(space.rows(fresh)).tolist()))))
    loads = dict(zip([*left, *search.known], space.loads(space.rows([*left, *search.known])).tolist()))
    taken, found = [loads[row] for row in search.known], list[Row]()
    while left and len(found) < ROUND:
        farthest = max(left, key=lambda row: min(abs(loads[row] - load) for load in taken))
        left.remove(farthest)
        found.append(farthest)
        taken.append(loads[farthest])
    return [search.picks(row) for row in found]


def _undominated(space: _Space, known: Mapping[Row, float]) -> dict[Row, float]:
    """Rows of which none other spends no more and diverges no more."""
    rows, found = list(known), dict[Row, float]()
    for place in np.lexsort((np.array(list(known.values())), space.loads(space.rows(rows)))):
        if known[rows[place]] < min(found.values(), default=math.inf):
            found[rows[place]] = known[rows[place]]
    return found


# The genetic algorithm


def _ready(judge: Judge | None) -> Judge:
    """The judge. Raises ``SettingError`` where there is none, or no pymoo."""
    cached(judge, "nsga2")
    assert judge is not None
    try:
        import pymoo  # noqa: F401
    except ImportError:
        raise SettingError("nsga2: pymoo must be installed, is not. Install modicum[search], or choose the allocator auto.") from None
    return judge


def _evolved(space: _Space, predictor: _Predictor, population: np.ndarray, band: tuple[float, float], seed: int) -> np.ndarray:
    """The last population (selections, sites) of NSGA-II on (predicted divergence, load), loads within the band."""
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.mutation import Mutation
    from pymoo.core.problem import Problem
    from pymoo.core.repair import Repair
    from pymoo.operators.crossover.ux import UniformCrossover
    from pymoo.optimize import minimize

    low, high = (end if math.isfinite(end) else -1e30 for end in band)

    class Selections(Problem):
        def __init__(self) -> None:
            super().__init__(n_var=len(space.sites), n_obj=2, n_ieq_constr=2, xl=np.zeros(len(space.sites)), xu=space.counts - 1, vtype=int)

        def _evaluate(self, x: np.ndarray, out: dict[str, Any], *args: Any, **kwargs: Any) -> None:
            loads = space.loads(x)
            out["F"], out["G"] = np.stack([predictor(x), loads], 1), np.stack([loads - high, low - loads], 1)

    class Redrawn(Mutation):
        def _do(self, problem: Problem, x: np.ndarray, *args: Any, random_state: Any = None, **kwargs: Any) -> np.ndarray:
            drawn = random_state.integers(0, space.counts, x.shape)
            return np.where(random_state.random(x.shape) < 1.5 / x.shape[1], drawn, x)

    class Settled(Repair):
        def _do(self, problem: Problem, x: np.ndarray, **kwargs: Any) -> np.ndarray:
            return space.settled(x.astype(int))

    algorithm = NSGA2(
        pop_size=len(population), sampling=population, crossover=UniformCrossover(), mutation=Redrawn(), repair=Settled()
    )  # fmt: skip
    return minimize(Selections(), algorithm, ("n_gen", GENERATIONS), seed=seed, verbose=False).pop.get("X").astype(int)
