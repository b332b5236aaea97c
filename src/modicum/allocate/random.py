"""Random: a selection drawn among those that fit."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from modicum.allocate._family import Judge, Spending, floor
from modicum.core.plan import Limits, Picks, Table


def random(table: Table, limits: Limits, judge: Judge | None = None, *, seed: int = 0, seconds: float = 0.0) -> Picks:
    """Random structure, then random upgrades until no more fit.

    From the selection that spends least, every site that others depend on moves to a random one of its choices that fits. Then the other
    sites are visited in a random order, again and again, and each moves to a random one of its choices that harm less and fit. Where none of
    them can harm less and something is left, structure does. What any better allocator must beat, and, over many seeds, the selections on which
    predictions are compared with measurements. Returns the selection that spends least where none fits, and the one of
    least harm where that fits.

    *Needs and cost:* the table; a pass over it for each rung that a site goes up and each move of structure.
    """
    return drawn(table, limits, floor(table, limits), table.best(lambda _, choice: (choice.harm, table.load(choice, limits))), seed)


def drawn(table: Table, limits: Limits, picks: Picks, whole: Picks, seed: int) -> Picks:
    """A random selection between the one that spends least and the one of least harm."""
    chance = np.random.default_rng(seed)
    if not table.fits(picks, limits):
        return picks
    if table.fits(whole, limits):
        return whole
    for site in _shuffled(table.children, chance):
        picks = _moved(table, picks, limits, site, table.allowed(site, picks), chance) or picks
    risen: Picks | None = picks
    while risen is not None:
        spending = _upgraded(table, risen, limits, chance)
        risen = None if any(map(spending.upgrades, spending.options)) else _restructured(table, spending.picks, limits, chance)
    return spending.picks


def _shuffled(sites: Iterable[str], chance: np.random.Generator) -> list[str]:
    names = list(sites)
    return [names[place] for place in chance.permutation(len(names))]


def _moved(table: Table, picks: Picks, limits: Limits, site: str, indices: list[int], chance: np.random.Generator) -> Picks | None:
    """The selection with a site at a random one of ``indices`` that fits, and those below it following."""
    for index in chance.permutation(indices):
        moved = table.settle({**picks, site: int(index)})
        if table.fits(moved, limits):
            return moved
    return None


def _restructured(table: Table, picks: Picks, limits: Limits, chance: np.random.Generator) -> Picks | None:
    """The selection with a random site that others depend on at a random choice that harms less and fits."""
    for site in _shuffled(table.children, chance):
        found = table.choices[site]
        better = [index for index in table.allowed(site, picks) if found[index].harm < found[picks[site]].harm]
        if moved := _moved(table, picks, limits, site, better, chance):
            return moved
    return None


def _upgraded(table: Table, picks: Picks, limits: Limits, chance: np.random.Generator) -> Spending:
    """Random upgrades of the sites at the ends of the tree until none fits."""
    spending, going = Spending(table, picks, limits), True
    while going:
        going = False
        for site in _shuffled(spending.options, chance):
            if found := [index for index in spending.upgrades(site) if spending.fits(site, index)]:
                spending.take(site, found[chance.integers(len(found))])
                going = True
    return spending


def spread(table: Table, count: int, seed: int = 0, resource: str = "bytes") -> list[Picks]:
    """``count`` random selections, their limits random between the least of a resource that can be spent and what keeping all spends.

    The range is cut into ``count`` equal parts and one limit is drawn from each, so that few selections cover it.
    """
    chance = np.random.default_rng(seed)
    # Of one resource, the ends are the same whatever its limit.
    picks = table.best(lambda _, choice: (choice.spends(resource), choice.harm))
    whole = table.best(lambda _, choice: (choice.harm, choice.spends(resource)))
    least, most = table.cost(picks, resource), table.cost(whole, resource)
    limits = least + max(most - least, 0.0) * (np.arange(count) + chance.random(count)) / max(count, 1)
    return [drawn(table, {resource: float(limit)}, picks, whole, int(chance.integers(2**31))) for limit in limits]
