"""Uniform: one option everywhere, then upgrades in layer order."""

from __future__ import annotations

from modicum.allocate._family import Judge, Picks, fill
from modicum.core.plan import Choice, Table

# Options of one kind differ by a few per cent between sites of different widths: headers, ragged groups.
_ALIKE = 1.05


def uniform(table: Table, budget: int, judge: Judge | None = None) -> Picks:
    """The largest uniform option that fits, then upgraded in layer order until nothing more fits.

    The baseline of the family. A site without the option takes its largest that costs no more per weight. *Needs:* the table.
    ``budget`` in bytes must be at least the table's cheapest selection.
    """
    rates = sorted({_rate(found, choice) for found in table.choices.values() for choice in found}, reverse=True)
    best = table.cheapest()
    for rate in rates:
        picks = {site: _largest(found, rate * _ALIKE) for site, found in table.choices.items()}
        if table.cost(picks) <= budget:
            best = picks
            break
    return fill(table, best, budget, order=list(table.choices))


def _rate(found: list[Choice], choice: Choice) -> float:
    return choice.bytes / max(other.values for other in found)


def _largest(found: list[Choice], rate: float) -> int:
    fitting = [i for i, choice in enumerate(found) if _rate(found, choice) <= rate]
    cheapest = min(range(len(found)), key=lambda i: found[i].bytes)
    return max(fitting, key=lambda i: (found[i].bytes, -found[i].harm), default=cheapest)
