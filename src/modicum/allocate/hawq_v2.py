"""HAWQ-V2: the mean curvature of a site times the squared change of its weights."""

from __future__ import annotations

from dataclasses import replace

from modicum.allocate._family import Judge, facts, fill, floor, skeleton
from modicum.allocate._program import least_harm
from modicum.core.errors import SettingError
from modicum.core.plan import Limits, Picks, Table


def hawq_v2(table: Table, limits: Limits, judge: Judge | None = None, *, seed: int = 0, seconds: float = 0.0) -> Picks:
    """Minimise the summed mean Hessian trace times squared change of the weights within all limits.

        Ω = Σ (tr H / n) · ‖Q(W) − W‖²

    is what the loss rises by (twice) where the changes point in random directions. The selections of which none smaller has less Ω are the
    Pareto frontier of size and Ω; the one on it at the limits is taken. What then remains is filled by the predicted harm. Sites that others
    depend on stay whole unless nothing would fit. Returns the selection that spends least where none fits.

    *Needs and cost:* the table with the fact ``trace`` of every site that has a choice, and the choices' ``distance``; otherwise as the
    integer program. *Reduces to:* the integer program where the harms are Ω. *Raises:* ``SettingError`` without traces or changes.

    *Differences from the paper:* it enumerates selections and plots the frontier; here its point at the limits is found directly, by the
    integer program, which allows several limits. Estimated traces below zero count as zero.
    """
    held = skeleton(table, limits)
    start = floor(table, limits, held)
    if not table.fits(start, limits):
        return start
    weighed = _weighed(table, [site for site in table.choices if site not in table.children and len(table.allowed(site, held)) > 1])
    known = fill(weighed, start, limits)
    return fill(table, fill(weighed, least_harm(weighed, limits, known, held, seconds=seconds or 60.0), limits), limits)


def _weighed(table: Table, sites: list[str]) -> Table:
    """The table with Ω in the place of the sites' harms."""
    trace = {site: max(value, 0.0) for site, value in facts(table, sites, "hawq_v2", "trace").items()}
    if sites and not any(choice.distance for site in sites for choice in table.choices[site]):
        raise SettingError("hawq_v2: must have the squared changes of the weights, the table holds none. Measure with --curvature.")
    omega = {site: [replace(choice, harm=trace[site] * choice.distance) for choice in table.choices[site]] for site in sites}
    return replace(table, choices=table.choices | omega)
