"""Whether a budget of memory buys more with 8-bit keys and values than rounding them loses."""

from __future__ import annotations

from modicum.allocate.integer_program import integer_program
from modicum.core.budget import readable
from modicum.fit.choose import Chooser
from modicum.table.findings import Findings


def settle_cache(chooser: Chooser, findings: Findings) -> str:
    """Leave keys and values as they are where that is forecast to lose no more within the same budgets; what was settled, as an event."""
    subject, runtime, table = chooser.subject, chooser.runtime, chooser.table(findings)
    lost, narrow = subject.rounding_cache, chooser.limits()
    assert lost is not None
    runtime.narrow_cache = False
    wide = chooser.limits()
    runtime.narrow_cache = True
    whole, rounded = (integer_program(table, limits) for limits in (wide, narrow))
    fits, saved = table.fits(whole, wide), round(narrow["memory"] - wide["memory"])
    leaves = fits and table.harm(whole) <= table.harm(rounded) + lost
    if leaves:
        subject.keep_cache(chooser.target)
        table.fixed["harm"] = subject.lost
    without = f"{table.harm(whole):.2g} without" if fits else "without that nothing fits"
    return (
        f"kv: keys and values {'stay as they are' if leaves else 'are rounded'}; {readable(saved)} would be saved, forecast to lose "
        f"{table.harm(rounded) + lost:.2g} with that, {without}"
    )
