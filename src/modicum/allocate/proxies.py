"""EMQ: an expression over the table's statistics, evolved until it ranks plans as their real divergence does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from modicum.allocate._cache import cached
from modicum.allocate._family import Judge, fill, judged
from modicum.allocate.integer_program import integer_program
from modicum.allocate.random import random, spread
from modicum.core.errors import SettingError, listed
from modicum.core.plan import Limits, Picks, Table

# Random plans to learn from, half of them at the limits; the fewest, where time is short; those judged at once; sequences to judge each on.
PLANS, FEWEST, TOGETHER, SAMPLES = 48, 12, 8, 8
# Expressions alive, born in each generation; generations; the best whose plans are judged.
POPULATION, BORN, GENERATIONS, FINALISTS = 64, 48, 60, 3
# Nodes of an expression at most; what each costs, in correlation.
NODES, COST = 15, 0.001
# Beyond this correlation of their ranks two expressions are one.
ALIKE = 0.9995
# Candidates of a tournament; share of children that have two parents, and that are mutated.
_TOURNAMENT, _CROSSED, _MUTATED = 3, 0.5, 0.7
# Random expressions tried for a newcomer.
_TRIES = 20

Expression = str | tuple[Any, ...]
"""A statistic's name, or an operation and what it works on."""

UNARY: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sqrt": lambda x: np.sqrt(np.abs(x)),
    "square": np.square,
    "log1p": lambda x: np.log1p(np.abs(x)),
}
BINARY: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": lambda x, y: x / (1 + np.abs(y)),
    "max": np.maximum,
    "min": np.minimum,
}
OPERATIONS: dict[str, Callable[..., np.ndarray]] = {**UNARY, **BINARY}
# What people use: predicted harm, change of the weights, the same weighed by mean and by largest curvature, change per weight.
HANDMADE: tuple[Expression, ...] = (
    "harm", "distance", ("*", "trace", "distance"), ("*", "eigenvalue", "distance"), ("/", "distance", "weights"),
)  # fmt: skip


@dataclass(frozen=True)
class Proxy:
    """An expression, and the rank correlation (Spearman) with real divergences on the plans it was evolved on."""

    expression: Expression
    correlation: float

    def __str__(self) -> str:
        return written(self.expression)

    def scores(self, table: Table) -> dict[str, np.ndarray]:
        """Its value for every choice, by site."""
        flat = evaluated(self.expression, statistics(table))
        ends = np.cumsum([len(found) for found in table.choices.values()])
        return dict(zip(table.choices, np.split(flat, ends[:-1])))

    def of(self, table: Table, plans: Sequence[Picks]) -> np.ndarray:
        """Its sum over the sites of each plan, (plans,)."""
        scores = self.scores(table)
        return np.array([sum(scores[site][index] for site, index in picks.items()) for picks in plans])

    def priced(self, table: Table) -> Table:
        """The table with it in the place of harm."""
        scores = self.scores(table)
        return replace(
            table,
            choices={s: [replace(c, harm=float(value)) for c, value in zip(found, scores[s])] for s, found in table.choices.items()},
        )  # fmt: skip


@judged
def proxies(
    table: Table, limits: Limits, judge: Judge | None = None, *, seed: int = 0, seconds: float = 0.0, generations: int = GENERATIONS
) -> Picks:  # fmt: skip
    """Evolve a proxy of the divergence on judged random plans, then solve the integer program on it.

    Half of the plans are at the limits, where plans differ by how they divide and not by what they spend; a proxy must rank both halves, each
    for itself. The integer program's answers on the ``FINALISTS`` best proxies and on the table's own harm, filled up to the limits by the
    harm, are judged on all sequences; the best is the answer.

    *Needs and cost:* a judge; ``PLANS`` plans on ``SAMPLES`` sequences, a few on all; seconds of evolution. With ``seconds`` no more plans
    are judged after half of them. Curvature (``trace``, ``eigenvalue``) is one of the statistics where the table has it. *Reduces to*
    ``integer_program`` where no proxy's answer is judged better. *Raises:* ``SettingError`` without a judge.

    *Differences from the paper:* the statistics are those of the table, one number for each choice, so that operations on matrices have no
    place; the fitness is the correlation with divergences measured here, on this model, in place of a benchmark's accuracies.
    """
    cached(judge, "proxies")
    assert judge is not None
    begun, start = time.monotonic(), integer_program(table, limits)
    if not start or not table.fits(start, limits):
        return start
    plans, groups = _plans(table, limits, seed)
    divergences = _judged(plans, judge, begun + seconds / 2 if seconds else np.inf)
    known = len(divergences)
    found = _evolved(table, plans[:known], divergences, seed, generations, groups[:known])[:FINALISTS]
    answers = _distinct([start, *_answers(table, limits, found)])
    final = judge.many(answers, judge.samples) if len(answers) > 1 else [np.zeros(1)]
    return answers[int(np.argmin([np.mean(outcome) for outcome in final]))]


def _answers(table: Table, limits: Limits, found: Sequence[Proxy]) -> Iterator[Picks]:
    """What the integer program makes of the proxies."""
    for proxy in found:
        yield fill(table, integer_program(proxy.priced(table), limits), limits)


def evolve(
    table: Table, plans: Sequence[Picks], divergences: Sequence[float] | np.ndarray, *, seed: int = 0, generations: int = GENERATIONS
) -> Proxy:  # fmt: skip
    """The proxy whose sum over a plan's sites ranks ``plans`` most as their ``divergences`` do.

    Expressions are trees of the table's statistics (each divided by its mean), ``UNARY`` and ``BINARY`` operations. Their fitness is Spearman's
    correlation less ``COST`` for each node. The first population holds what people use (``HANDMADE``) and random trees. A child has one parent
    that won a tournament, or a second one: of another tournament not the fittest but the one that ranks plans least like the first (selection
    that prompts diversity). Screened out are expressions that are not finite, that rank nothing, and that rank plans as a fitter one
    does; a child less fit than both its parents makes way for a random newcomer.

    *Needs and cost:* two dozen plans or more; each generation ``BORN`` passes over the table and the plans. *Raises:* ``SettingError`` for fewer
    than three plans of different finite divergence.
    """
    found = _evolved(table, plans, np.asarray(divergences, dtype=np.float64), seed, generations, np.zeros(len(plans), dtype=int))
    if not found:
        raise SettingError(f"proxy: must have at least three plans that differ and whose divergences do, has {len(plans)}. Judge more.")
    return found[0]


def _plans(table: Table, limits: Limits, seed: int) -> tuple[list[Picks], np.ndarray]:
    """Different random plans, in turn of any size and at the limits, and which they are, (plans,)."""
    chance = np.random.default_rng(seed)
    wide = spread(table, PLANS // 2, int(chance.integers(2**31)), next(iter(limits)))
    near = [random(table, limits, seed=int(chance.integers(2**31))) for _ in wide]
    plans = _distinct([picks for place, close in zip(chance.permutation(len(wide)), near) for picks in (wide[place], close)])
    return plans, np.array([picks in near for picks in plans], dtype=int)


def _distinct(plans: Iterable[Picks]) -> list[Picks]:
    return list({tuple(picks.values()): picks for picks in plans}.values())


def _judged(plans: Sequence[Picks], judge: Judge, deadline: float) -> np.ndarray:
    """Mean KL of the plans, as many as there is time for, (judged,)."""
    found: list[float] = []
    together = TOGETHER if np.isfinite(deadline) else max(len(plans), 1)
    for start in range(0, len(plans), together):
        if time.monotonic() > deadline and len(found) >= FEWEST:
            break
        outcomes = judge.many(plans[start : start + together], min(SAMPLES, judge.samples))
        found += [float(np.mean(outcome)) for outcome in outcomes]
    return np.array(found)


# Expressions


def statistics(table: Table) -> dict[str, np.ndarray]:
    """What expressions are made of, (choices,) each: of every choice, or of its site; divided by their mean."""
    flat = [(site, choice) for site, found in table.choices.items() for choice in found]
    place = {site: (number + 1) / len(table.choices) for number, site in enumerate(table.choices)}
    found = {key: np.array([getattr(choice, key) for _, choice in flat], dtype=float) for key in ("harm", "distance", "bytes", "values")}
    found["position"] = np.array([place[site] for site, _ in flat])
    # Sites that are structure, not weights, have no facts.
    for key in ("trace", "eigenvalue", "weights"):
        if any(key in facts for facts in table.facts.values()):
            found[key] = np.array([max(table.facts.get(site, {}).get(key, 0.0), 0.0) for site, _ in flat])
    return {key: values / np.abs(values).mean() for key, values in found.items() if np.abs(values).mean() > 0}


def evaluated(expression: Expression, known: dict[str, np.ndarray]) -> np.ndarray:
    """Value of an expression, (choices,). Raises ``SettingError`` for a statistic that the table lacks."""
    if isinstance(expression, str):
        if expression not in known:
            raise SettingError(f"proxy: the table must have {expression}, has {listed(known)}. Measure with --curvature, or evolve again.")
        return known[expression]
    values = [evaluated(part, known) for part in expression[1:]]
    return OPERATIONS[expression[0]](*values)


def written(expression: Expression) -> str:
    """An expression for people."""
    if isinstance(expression, str):
        return expression
    word, texts = expression[0], [written(part) for part in expression[1:]]
    if word.isalnum():
        return f"{word}({', '.join(texts)})"
    if word == "/":
        return f"{_bracketed(texts[0])} / (1 + abs({texts[1]}))"
    return f" {word} ".join(map(_bracketed, texts))


def _bracketed(text: str) -> str:
    """In brackets where an operation stands outside all others."""
    depth = np.cumsum([(letter == "(") - (letter == ")") for letter in text])
    return f"({text})" if any(letter == " " and not inside for letter, inside in zip(text, depth)) else text


def parts(expression: Expression, path: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], Expression]]:
    """Every part of an expression with the way to it, itself first."""
    yield path, expression
    if not isinstance(expression, str):
        for place in range(1, len(expression)):
            yield from parts(expression[place], (*path, place))


def exchanged(expression: Expression, path: tuple[int, ...], part: Expression) -> Expression:
    """The expression with another part at the end of ``path``."""
    if not path:
        return part
    return tuple(exchanged(old, path[1:], part) if place == path[0] else old for place, old in enumerate(expression))


def one_of(names: Sequence[str], chance: np.random.Generator) -> str:
    """A random name."""
    return names[int(chance.integers(len(names)))]


def drawn(names: Sequence[str], chance: np.random.Generator, depth: int = 3) -> Expression:
    """A random expression of at most ``depth`` operations one within the other."""
    kind = chance.random()
    if depth == 0 or kind < 0.25:
        return one_of(names, chance)
    word = one_of(list(UNARY if kind < 0.45 else BINARY), chance)
    return (word, *(drawn(names, chance, depth - 1) for _ in range(1 if word in UNARY else 2)))


# Evolution


def ranked(values: np.ndarray) -> np.ndarray:
    """Ranks from one, those of equal values averaged."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


@dataclass(frozen=True)
class _Living:
    """An expression in the population: ranks of the plans, centered and of unit length, by group; correlation; fitness."""

    expression: Expression
    ranks: np.ndarray
    correlation: float
    fitness: float


class _Nature:
    """What expressions are tried on."""

    def __init__(self, table: Table, plans: Sequence[Picks], divergences: np.ndarray, groups: np.ndarray, seed: int):
        self.known, self.chance = statistics(table), np.random.default_rng(seed)
        start = dict(zip(table.choices, np.cumsum([0, *(len(found) for found in table.choices.values())])))
        self.rows = np.array([[start[site] + index for site, index in picks.items()] for picks in plans], dtype=int).reshape(
            len(plans), len(table.choices)
        )
        members = [np.flatnonzero((groups == label) & np.isfinite(divergences)) for label in np.unique(groups)]
        self.groups = [places for places in members if len(np.unique(divergences[places])) > 2]
        self.wanted = self._ranks(divergences)

    def _ranks(self, values: np.ndarray) -> np.ndarray | None:
        """Ranks within every group, centered, of unit length each; None where a group's are all the same, or nothing is to be ranked."""
        found = []
        for members in self.groups:
            ranks = ranked(values[members])
            ranks -= ranks.mean()
            if not (length := float(np.linalg.norm(ranks))) > 0:
                return None
            found.append(ranks / length)
        return np.concatenate(found) / np.sqrt(len(found)) if found else None

    def living(self, expression: Expression) -> _Living | None:
        """An expression that passes the screening, None otherwise."""
        nodes = sum(1 for _ in parts(expression))
        if nodes > NODES:
            return None
        with np.errstate(all="ignore"):
            sums = evaluated(expression, self.known)[self.rows].sum(1)
        # Sums that differ by rounding alone are equal.
        ranks = self._ranks((sums / max(np.abs(sums).max(), 1e-300)).round(10)) if np.isfinite(sums).all() and len(sums) else None
        if ranks is None or self.wanted is None:
            return None
        correlation = float(ranks @ self.wanted)
        return _Living(expression, ranks, correlation, correlation - COST * nodes)

    def newcomer(self) -> _Living | None:
        """A random expression that passes, None where none is found."""
        tried = (self.living(drawn(list(self.known), self.chance)) for _ in range(_TRIES))
        return next((found for found in tried if found is not None), None)

    def child(self, population: Sequence[_Living]) -> _Living | None:
        """Of one parent, or of two unlike each other; a newcomer where it is no match for them."""
        first = max(self._tournament(population), key=lambda one: one.fitness)
        least, expression = first.fitness, first.expression
        if self.chance.random() < _CROSSED:
            second = min(self._tournament(population), key=lambda one: abs(one.ranks @ first.ranks))
            least, expression = min(least, second.fitness), self._crossed(first.expression, second.expression)
        if self.chance.random() < _MUTATED or expression == first.expression:
            expression = self._mutated(expression)
        found = self.living(expression)
        return found if found is not None and found.fitness >= least else self.newcomer()

    def _tournament(self, population: Sequence[_Living]) -> list[_Living]:
        return [population[place] for place in self.chance.integers(0, len(population), _TOURNAMENT)]

    def _part(self, expression: Expression) -> tuple[tuple[int, ...], Expression]:
        found = list(parts(expression))
        return found[self.chance.integers(len(found))]

    def _crossed(self, one: Expression, other: Expression) -> Expression:
        return exchanged(one, self._part(one)[0], self._part(other)[1])

    def _mutated(self, expression: Expression) -> Expression:
        """A part drawn anew, set into an operation, or put in the place of all."""
        path, part = self._part(expression)
        kind, names = self.chance.random(), list(self.known)
        if kind < 0.4:
            return exchanged(expression, path, drawn(names, self.chance, 1))
        if kind < 0.6:
            return exchanged(expression, path, (one_of(list(UNARY), self.chance), part))
        if kind < 0.9:
            return exchanged(expression, path, (one_of(list(BINARY), self.chance), part, drawn(names, self.chance, 1)))
        return part


def _evolved(
    table: Table, plans: Sequence[Picks], divergences: np.ndarray, seed: int, generations: int, groups: np.ndarray
) -> list[Proxy]:  # fmt: skip
    """The last population, fittest first."""
    nature = _Nature(table, plans, divergences, groups, seed)
    handmade = [nature.living(expression) for expression in HANDMADE if _leaves(expression) <= nature.known.keys()]
    population = _survivors([*handmade, *(nature.newcomer() for _ in range(POPULATION - len(handmade)))])
    for _ in range(generations if population else 0):
        population = _survivors([*population, *(nature.child(population) for _ in range(BORN))])
    return [Proxy(one.expression, one.correlation) for one in population]


def _leaves(expression: Expression) -> set[str]:
    return {part for _, part in parts(expression) if isinstance(part, str)}


def _survivors(crowd: Iterable[_Living | None]) -> list[_Living]:
    """The fittest, of those alike only the fittest."""
    found: list[_Living] = []
    for one in sorted((one for one in crowd if one is not None), key=lambda one: -one.fitness):
        if len(found) < POPULATION and all(one.ranks @ other.ranks < ALIKE for other in found):
            found.append(one)
    return found
