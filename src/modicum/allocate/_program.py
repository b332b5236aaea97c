"""Selections as an integer program: one binary per choice, solved by scipy's ``milp`` (HiGHS)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, linprog, milp
from scipy.sparse import coo_matrix, vstack

from modicum.core.plan import Choice, Limits, Picks, Table

# Share of the price within which an answer is exact.
GAP = 1e-9
# A limit in the solver's units. Its tolerance is absolute, 1e-6, so that large units make it a small share of the limit.
_ROOM = 1e4
# Shares of a limit held back where the solver's answer missed it by its tolerance.
_MARGINS = (0.0, 1e-9, 1e-6)
# Of a price of the order of one: what the linear program may be off by.
_SLACK = 1e-6

Column = tuple[str, int]


def columns(table: Table) -> list[Column]:
    """(site, choice index) of every binary, in the table's order."""
    return [(site, index) for site, found in table.choices.items() for index in range(len(found))]


def prices_of(table: Table, price: Callable[[str, Choice], float]) -> np.ndarray:
    """``price(site, choice)`` of every binary."""
    return np.array([float(price(site, table.choices[site][index])) for site, index in columns(table)])


def holding(table: Table, held: Picks) -> np.ndarray:
    """Whether each binary may be set where the sites of ``held`` take the choice named there."""
    return np.array([held.get(site, index) == index for site, index in columns(table)], dtype=bool)


def solve(
    table: Table, limits: Limits, prices: np.ndarray, allowed: np.ndarray, *,
    beside: Sequence[LinearConstraint] = (), below: float = np.inf, seconds: float = 60.0, gap: float = GAP,
) -> Picks | None:  # fmt: skip
    """The consistent selection within all limits whose summed ``prices`` are least, or None where none was found.

    ``prices`` and ``allowed`` (choices) by ``columns``. Prices should be of the order of one: the solver's gap is absolute, 1e-6. ``beside`` are
    further constraints on the binaries. Only selections whose price is ``below`` are asked for, by more than the ``gap``. ``seconds`` bounds the
    time, after which the best selection met is returned; ``gap`` is the share of the price within which the answer may miss the least.
    """
    room = _room(table, limits)
    problem, allowed = _problem(table, room, prices, allowed, beside)
    flat = columns(table)
    if np.isfinite(below):
        relaxed = problem.relaxed(allowed)
        if relaxed.x is not None and relaxed.fun - _SLACK >= below - gap * abs(below):
            return None
        allowed = allowed & problem.promising(relaxed, allowed, below)
    for margin in _MARGINS if min(room.values(), default=0.0) >= 0 else ():
        chosen = problem.solved(allowed, margin, seconds, gap)
        if chosen is None:
            return None
        picks = {flat[column][0]: flat[column][1] for column in np.flatnonzero(chosen)}
        picks = {site: picks[site] for site in table.choices}
        if table.fits(picks, limits):
            return picks
    return None


def worth(table: Table, limits: Limits, scale: float, held: Picks) -> dict[str, float] | None:
    """What a unit of each limited resource is worth in harm, to a small share of ``scale``, by the linear program; None where it has no answer."""
    room = _room(table, limits)
    harms = prices_of(table, lambda _, choice: choice.harm)
    problem, allowed = _problem(table, room, harms / scale, holding(table, held) & (harms <= scale), ())
    result = problem.relaxed(allowed)
    if result.x is None:
        return None
    scarce = [resource for resource, most in room.items() if 0 < most < np.inf]
    prices = -result.ineqlin.marginals[len(result.ineqlin.marginals) - len(scarce) :]
    return {resource: float(price) * scale * _ROOM / room[resource] for resource, price in zip(scarce, prices)}


def _room(table: Table, limits: Limits) -> dict[str, float]:
    """What choices may spend of each resource."""
    return {resource: most - table.fixed.get(resource, 0) for resource, most in limits.items()}


def _problem(
    table: Table, room: Mapping[str, float], prices: np.ndarray, allowed: np.ndarray, beside: Sequence[LinearConstraint]
) -> tuple[_Problem, np.ndarray]:  # fmt: skip
    """The program, and which of the ``allowed`` choices there is room for."""
    spent = {resource: prices_of(table, lambda _, choice: choice.spends(resource)) for resource in room}  # noqa: B023
    for resource, most in room.items():
        allowed = allowed & (spent[resource] <= most)
    flat = columns(table)
    scarce = np.array([spent[resource] * (_ROOM / most) for resource, most in room.items() if 0 < most < np.inf]).reshape(-1, len(flat))
    rules = [_structure(table, flat), *beside]
    return _Problem(np.where(allowed, prices, 0.0), np.where(allowed, scarce, 0.0), rules), allowed


@dataclass(frozen=True)
class _Problem:
    """Prices (columns,), limited resources (limits, columns) in units of which there are ``_ROOM``, and all other rules."""

    prices: np.ndarray
    scarce: np.ndarray
    rules: list[LinearConstraint]

    def solved(self, allowed: np.ndarray, margin: float, seconds: float, gap: float) -> np.ndarray | None:
        """Whether each binary is set, (columns,), where all limits are less by a share of ``margin``."""
        limited = [LinearConstraint(self.scarce, -np.inf, _ROOM * (1 - margin))] if len(self.scarce) else []
        with _quiet():
            result = milp(
                self.prices, constraints=[*self.rules, *limited], integrality=np.ones(len(self.prices)),
                bounds=Bounds(0, allowed.astype(float)), options={"mip_rel_gap": gap, "time_limit": seconds},
            )  # fmt: skip
        return None if result.x is None else result.x > 0.5

    @staticmethod
    def promising(result: OptimizeResult, allowed: np.ndarray, below: float) -> np.ndarray:
        """Whether each binary may be set at a price ``below``: that of the linear program and its own reduced cost together are not above."""
        return allowed if result.x is None else (result.lower.marginals <= below - result.fun + _SLACK) | (result.x > _SLACK)

    def relaxed(self, allowed: np.ndarray) -> OptimizeResult:
        """The linear program: binaries may be anything between. The last of its inequalities are the limits."""
        rules = vstack([rule.A for rule in self.rules], format="csr")
        low, high = (np.concatenate([getattr(rule, end) for rule in self.rules]) for end in ("lb", "ub"))
        same = low == high
        return linprog(
            self.prices, A_ub=vstack([-rules[~same], coo_matrix(self.scarce)]), b_ub=np.r_[-low[~same], np.full(len(self.scarce), _ROOM)],
            A_eq=rules[same], b_eq=low[same], bounds=np.stack([np.zeros(len(allowed)), allowed.astype(float)], 1), method="highs",
        )  # fmt: skip


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing on standard output meanwhile: HiGHS writes a line there that no option of it turns off."""
    try:
        kept = os.dup(1)
    except OSError:  # closed: nothing to keep quiet
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _structure(table: Table, flat: list[Column]) -> LinearConstraint:
    """Every site takes one choice, and a child one of those that stand under what its parent takes."""
    place = {column: number for number, column in enumerate(flat)}
    rows = list(_rows(table, place))
    entries = [(row, column, sign) for row, (found, _) in enumerate(rows) for column, sign in found]
    matrix = coo_matrix(
        ([sign for _, _, sign in entries], ([row for row, _, _ in entries], [column for _, column, _ in entries])),
        shape=(len(rows), len(flat)),
    )
    return LinearConstraint(matrix, np.array([least for _, (least, _) in rows]), np.array([most for _, (_, most) in rows]))


def _rows(table: Table, place: dict[Column, int]) -> Iterator[tuple[list[tuple[int, float]], tuple[float, float]]]:
    """(column, sign) of every row's entries, and the row's bounds."""
    for site, found in table.choices.items():
        yield [(place[site, index], 1.0) for index in range(len(found))], (1.0, 1.0)
        if site in table.parents:
            parent = table.parents[site]
            groups: dict[tuple[int, ...], list[int]] = {}
            for index, choice in enumerate(table.choices[parent]):
                groups.setdefault(tuple(table.under(site, choice.option)), []).append(index)
            for mine, theirs in groups.items():
                yield [*((place[site, i], 1.0) for i in mine), *((place[parent, i], -1.0) for i in theirs)], (0.0, np.inf)


def least_harm(
    table: Table, limits: Limits, known: Picks, held: Picks | None = None, *, beside: Sequence[LinearConstraint] = (), seconds: float = 60.0,
    gap: float = GAP,
) -> Picks:  # fmt: skip
    """The selection of least summed harm within all limits, exactly, where the sites of ``held`` take the choice named there.

    ``known`` is one that may be returned; ``beside``, ``seconds`` and ``gap`` as in ``solve``. The solver's gap is absolute too, so that one
    ruinous choice would blunt it: harms are scaled to those of the best selection known, choices that alone harm more are forbidden, and where
    the answer harms far less it is asked again.
    """
    harms = prices_of(table, lambda _, choice: choice.harm)
    # No selection harms less than this: a choice is out of question only where even the least of all others cannot make up for it.
    floor = sum(min(0.0, *(choice.harm for choice in found)) for found in table.choices.values())
    free = holding(table, held or {})
    until = time.monotonic() + seconds
    for _ in range(8):
        # A selection in excess of the limits is no bound.
        fits = table.fits(known, limits)
        scale = table.harm(known) - floor if fits else np.inf
        if scale == 0:
            break
        if not np.isfinite(scale):
            scale = float(np.abs(harms[np.isfinite(harms)]).sum()) or 1.0
        found = solve(
            table, limits, harms / scale, free & (harms <= scale * (1 + 1e-9)), beside=beside,
            below=table.harm(known) / scale if fits else np.inf, seconds=max(until - time.monotonic(), 0.1), gap=gap,
        )  # fmt: skip
        if found is None or (fits and table.harm(found) >= table.harm(known)):
            break
        known, shrunk = found, (table.harm(found) - floor) / scale
        if shrunk > 0.1:
            break
    return known
