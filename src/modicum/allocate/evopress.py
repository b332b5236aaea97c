"""EvoPress: evolution by level switches that keep the budget, judged on growing samples."""

from __future__ import annotations

import time

import numpy as np

from modicum.allocate._cache import Cached, cached
from modicum.allocate._family import Judge, fill, judged, switched
from modicum.allocate.uniform import uniform
from modicum.core.plan import Limits, Picks, Table

GENERATIONS, OFFSPRING = 30, 24
# Survivors of each stage of a selection, and the share of the judge's sequences that the stage looks at.
SURVIVORS = (6, 2, 1)
SHARES = (1 / 16, 1 / 4, 1.0)
# Most switches of one mutation.
SWITCHES = 3


@judged
def evopress(
    table: Table, limits: Limits, judge: Judge | None = None, *, seed: int = 0, seconds: float = 0.0, generations: int = GENERATIONS,
    offspring: int = OFFSPRING, survivors: tuple[int, ...] = SURVIVORS, shares: tuple[float, ...] = SHARES,
) -> Picks:  # fmt: skip
    """Search by a (1 + λ) evolution on the real divergence (arXiv 2410.14649).

    The parent is the uniform selection at first. Every generation makes ``offspring`` children of it by level switches: as many sites up a
    level as the lesser of two uniform draws from 1 to ``SWITCHES`` says, and others down until the limits hold again. Stage by stage the
    best ``survivors`` go on to a larger share of the sequences; at the last stage the parent competes with its children, so that the
    divergence over all sequences never rises. No predicted harm is looked at, but to spend what a switch leaves over.

    Ends after ``generations``, or when ``seconds`` are spent: the generation in progress is finished.

    *Needs and cost:* a judge; per generation ``offspring`` small samples, ``survivors[0]`` middle ones, and ``survivors[1]`` judgements of
    all sequences (the parent's is remembered). *Reduces to* ``uniform`` with no generations. *Raises* ``SettingError`` without a judge.

    *Differences from the paper:* sites of any size are switched with one another, and what a switch leaves is spent (``fill``); samples are
    the first sequences, not drawn anew in each generation; budgets between two levels start at the filled uniform selection, not at the
    best of random ones; fewer generations and children than the 150 of 128 used for large models, by default.
    """
    known = cached(judge, "evopress")
    parent = uniform(table, limits)
    chance, began = np.random.default_rng(seed), time.monotonic()
    for _ in range(generations if table.fits(parent, limits) else 0):
        if seconds > 0 and time.monotonic() - began >= seconds:
            break
        children = _children(table, parent, limits, chance, offspring)
        if not children:
            break
        parent = _selected(known, parent, children, survivors, shares)
    return parent


def _children(table: Table, parent: Picks, limits: Limits, chance: np.random.Generator, count: int) -> list[Picks]:
    """Different children of one parent; fewer than asked for where a bounded number of tries finds no more."""
    found: list[Picks] = []
    for _ in range(4 * count):
        steps = int(chance.integers(1, SWITCHES + 1, 2).min())
        if (moved := switched(table, parent, limits, chance, steps)) is None:
            continue
        child = fill(table, moved, limits)
        if child != parent and child not in found:
            found.append(child)
        if len(found) == count:
            break
    return found


def _selected(judge: Cached, parent: Picks, children: list[Picks], survivors: tuple[int, ...], shares: tuple[float, ...]) -> Picks:
    """The fittest of the children and the parent, by stages."""
    for stage, (count, share) in enumerate(zip(survivors, shares), 1):
        # The parent stands first: a child must be better, not as good.
        contenders = [parent, *children] if stage == len(survivors) else children
        outcomes = judge.many(contenders, max(1, round(share * judge.samples)))
        ranked = np.argsort([outcome.mean() for outcome in outcomes], kind="stable")
        children = [contenders[place] for place in ranked[:count]]
    return children[0]
