"""Integer program: the selection of least summed harm that fits, exactly."""

from __future__ import annotations

from modicum.allocate._family import Judge, fill, near
from modicum.allocate._program import GAP, least_harm
from modicum.core.plan import Limits, Picks, Table


def integer_program(
    table: Table, limits: Limits, judge: Judge | None = None, *, seed: int = 0, seconds: float = 0.0, gap: float = GAP,
    known: Picks | None = None,
) -> Picks:  # fmt: skip
    """Minimise the summed predicted harm within all limits, by scipy's ``milp`` (HiGHS).

    One binary x per choice:

        min Σ harm·x    where    Σ x = 1 for every site,    Σ spends·x <= limit for every resource,

    and a site that depends on another takes one of the choices that stand under what the other takes. What the solver's tolerance leaves is
    filled. Returns the selection that spends least where none fits.

    *Needs and cost:* the table. Hard in principle; for hundreds of sites with a dozen choices about a second. ``seconds`` bounds it (0: one
    minute), after which the best selection met is returned; ``gap`` is the share of the harm within which it is exact, of one that is ``known``
    too where none loses less by more.
    """
    start = known or near(table, limits)
    if not table.fits(start, limits):
        return start
    return fill(table, least_harm(table, limits, start, seconds=seconds or 60.0, gap=gap), limits)
