"""Uniform: one option everywhere, then upgrades in layer order."""

from __future__ import annotations

import numpy as np

from modicum.allocate._family import ALIKE, Judge, Rungs, fill, floor, skeleton
from modicum.core.plan import Limits, Picks, Table


def uniform(table: Table, limits: Limits, judge: Judge | None = None, *, seed: int = 0, seconds: float = 0.0) -> Picks:
    """The largest uniform option that fits, then upgraded in layer order until nothing more fits.

    The baseline of the family: nothing is cut where that can be avoided. A site without the option takes its largest that spends no more
    per weight. Returns the selection that spends least where none fits. *Needs and cost:* the table.
    """
    held = skeleton(table, limits)
    rungs = {site: Rungs(table, site, held, limits) for site in table.choices if site not in table.children}
    rates = np.array(sorted({rate for found in rungs.values() for rate in found.rates}, reverse=True)) * ALIKE
    picked = {site: found.at(rates) for site, found in rungs.items()}
    for place in np.flatnonzero(_fitting(table, limits, held, picked, len(rates))):
        picks = {site: held[site] if site in held else int(picked[site][place]) for site in table.choices}
        if table.fits(picks, limits):
            return fill(table, picks, limits, order=list(table.choices))
    return fill(table, floor(table, limits, held), limits, order=list(table.choices))


def _fitting(table: Table, limits: Limits, held: Picks, picked: dict[str, np.ndarray], count: int) -> np.ndarray:
    """Whether the selection of each rate fits, but for rounding, (rates,)."""
    fitting = np.ones(count, dtype=bool)
    for resource, most in limits.items():
        total = np.full(count, table.cost(held, resource))
        for site, indices in picked.items():
            total += np.array([choice.spends(resource) for choice in table.choices[site]])[indices]
        fitting &= total <= most * (1 + 1e-9)
    return fitting
