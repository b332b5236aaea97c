"""Integer program: the selection of least summed harm that fits, exactly."""

from __future__ import annotations

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_matrix

from modicum.allocate._family import Judge, Picks, fill
from modicum.core.plan import Table


def integer_program(table: Table, budget: int, judge: Judge | None = None) -> Picks:
    """Minimise the summed predicted harm subject to the bytes, by scipy's ``milp`` (HiGHS).

    One binary per choice; each site takes exactly one. The solver's gap is absolute, so that one ruinous choice would blunt it: choices that
    alone harm more than a selection already known are forbidden, and harms are scaled to that selection's.
    ``budget`` in bytes must be at least the table's cheapest selection.
    """
    flat = [(site, index) for site, found in table.choices.items() for index in range(len(found))]
    if not flat:
        return {}
    harms = np.array([table.choices[site][index].harm for site, index in flat])
    costs = np.array([table.choices[site][index].bytes for site, index in flat], dtype=float)
    rows = {site: row for row, site in enumerate(table.choices)}
    one = coo_matrix((np.ones(len(flat)), ([rows[site] for site, _ in flat], range(len(flat)))))
    known = fill(table, table.cheapest(), budget)
    scale = max(table.harm(known), 1e-300)
    allowed = (harms <= scale * (1 + 1e-9)) | np.array([known[site] == index for site, index in flat])
    harms = np.where(allowed, harms, 0.0)
    room = max(budget - table.fixed, 1)
    result = milp(
        harms / scale,
        constraints=[LinearConstraint(one, 1, 1), LinearConstraint(costs[None] / room, -np.inf, 1.0)],
        integrality=np.ones(len(flat)),
        bounds=Bounds(0, allowed.astype(float)),
        options={"mip_rel_gap": 1e-9, "time_limit": 60.0},
    )
    picks = known
    if result.x is not None:
        chosen = {flat[i][0]: flat[i][1] for i in np.flatnonzero(result.x > 0.5)}
        if table.cost(chosen) <= budget and table.harm(chosen) <= table.harm(known):
            picks = chosen
    return fill(table, picks, budget)
