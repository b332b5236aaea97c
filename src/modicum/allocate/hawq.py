"""HAWQ: sites ordered by their top Hessian eigenvalue, more bits to the higher ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.optimize import LinearConstraint
from scipy.sparse import coo_matrix

from modicum.allocate._family import ALIKE, Judge, Rungs, facts, fill, floor, skeleton
from modicum.allocate._program import least_harm
from modicum.core.plan import Limits, Picks, Table


def hawq(table: Table, limits: Limits, judge: Judge | None = None, *, seed: int = 0, seconds: float = 0.0) -> Picks:
    """Give a site no fewer bits than those whose Hessian bends less, so that the budget is used best.

    Sites are ordered by S = λ / n, the largest eigenvalue of the loss's Hessian in the site's weights over their number. Along that order
    what is spent per weight never rises; what is left to choose is where it falls from one level to the next. Of all such splits within the
    limits the one of least Σ λ‖ΔW‖² is taken (without measured changes: the one that spends most), exactly, as an integer program over
    (site, level). What then remains is filled by the predicted harm.

    A site without an option of a level takes its largest below, otherwise its smallest. Sites that others depend on stay whole unless nothing
    would fit. Returns the selection that spends least where none fits.

    *Needs and cost:* the table with the facts ``eigenvalue`` and ``weights`` of every site that has a choice, and the choices' ``distance``;
    about a second for hundreds of sites. *Reduces to:* one option everywhere where one level is all there is. *Raises:* ``SettingError``
    without the eigenvalues.

    *Differences from the paper:* it leaves the levels along the order to the user, and fine-tunes block by block afterwards; blocks there are
    sites here.
    """
    held = skeleton(table, limits)
    known = floor(table, limits, held)
    sites = [site for site in table.choices if site not in table.children and len(table.allowed(site, held)) > 1]
    bends, weights = facts(table, sites, "hawq", "eigenvalue"), facts(table, sites, "hawq", "weights")
    ordered = sorted(sites, key=lambda site: -bends[site] / max(weights[site], 1.0))
    if ordered and table.fits(known, limits):
        known = known | _split(table, limits, known, {site: max(bends[site], 0.0) for site in ordered}, seconds or 60.0)
    return fill(table, known, limits)


def _split(table: Table, limits: Limits, known: Picks, bends: dict[str, float], seconds: float) -> Picks:
    """Choices of the sites of ``bends``, in its order, their rates falling along it; none where no such choices fit."""
    rungs = {site: Rungs(table, site, known, limits) for site in bends}
    levels = _levels(np.concatenate([found.rates for found in rungs.values()]))
    picked = {site: found.at(levels) for site, found in rungs.items()}
    stairs = _staircase(table, limits, known, picked, bends)
    found = least_harm(stairs, limits, _priced(stairs, limits), beside=_falling(len(bends), len(levels)), seconds=seconds)
    return {site: int(picked[site][level]) for site, level in found.items()} if stairs.fits(found, limits) else {}


def _levels(rates: np.ndarray) -> np.ndarray:
    """What is spent per weight at every level, the largest first; rates within a few per cent are one level."""
    levels: list[float] = []
    for rate in sorted(rates, reverse=True):
        if not levels or rate * ALIKE < levels[-1]:
            levels.append(float(rate))
    return np.array(levels)


def _staircase(table: Table, limits: Limits, known: Picks, picked: dict[str, np.ndarray], bends: dict[str, float]) -> Table:
    """The ordered sites as a table of their own, one choice per level, whose harm is λ‖ΔW‖²; without changes, what is not spent."""
    rest = {resource: table.cost({site: index for site, index in known.items() if site not in picked}, resource) for resource in limits}
    found = {site: [table.choices[site][index] for index in indices] for site, indices in picked.items()}
    measured = any(bends[site] * choice.distance for site, choices in found.items() for choice in choices)
    harm = lambda site, choice: bends[site] * choice.distance if measured else -table.load(choice, limits)
    return Table(
        {site: [replace(choice, harm=harm(site, choice), given=()) for choice in choices] for site, choices in found.items()}, rest
    )


def _priced(stairs: Table, limits: Limits) -> Picks:
    """Falling levels of least harm plus a price times what they spend: of the prices at which that fits, the lowest; otherwise the last level."""
    harm, load = (
        np.array([[of(choice) for choice in found] for found in stairs.choices.values()])
        for of in (lambda choice: choice.harm, lambda choice: stairs.load(choice, limits))
    )
    best = np.full(len(harm), harm.shape[1] - 1)
    low, high = np.log(np.abs(harm).sum() + 1e-300) + np.array([-30.0, 30.0])
    for _ in range(40):
        price = (low + high) / 2
        levels = _descent(harm + np.exp(price) * load)
        if stairs.fits(dict(zip(stairs.choices, levels.tolist())), limits):
            best, high = levels, price
        else:
            low = price
    return dict(zip(stairs.choices, best.tolist()))


def _descent(prices: np.ndarray) -> np.ndarray:
    """Levels of least summed price (sites, levels), none above that of the site before, (sites,)."""
    sums = [prices[0]]
    for row in prices[1:]:
        sums.append(row + np.minimum.accumulate(sums[-1]))
    levels = [int(sums[-1].argmin())]
    for total in reversed(sums[:-1]):
        levels.append(int(total[: levels[-1] + 1].argmin()))
    return np.array(levels[::-1])


def _falling(sites: int, levels: int) -> list[LinearConstraint]:
    """Of two neighbours in the order, the second is at one of the first levels only where the first is too."""
    if sites < 2 or levels < 2:
        return []
    upto = np.tril(np.ones((levels - 1, levels)))
    rows, columns = np.nonzero(upto)
    first = np.arange(sites - 1)[:, None]
    row, column = (first * (levels - 1) + rows).ravel(), (first * levels + columns).ravel()
    signs, both = np.repeat([1.0, -1.0], row.size), np.concatenate([column, column + levels])
    matrix = coo_matrix((signs, (np.tile(row, 2), both)), shape=((sites - 1) * (levels - 1), sites * levels))
    return [LinearConstraint(matrix, np.zeros(matrix.shape[0]), np.full(matrix.shape[0], np.inf))]
