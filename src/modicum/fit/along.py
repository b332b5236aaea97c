"""The frontier of one run: what other sizes are forecast to lose, and what every site gets there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from modicum.core.plan import Choice, Picks, Table
from modicum.fit.verdict import selections
from modicum.table.sizing import level_of

# Sizes closer than this are one point.
_ALIKE = 1.003


def along(table: Table, picks: Picks, beyond: Callable[[str, str], float | None]) -> dict[str, Any]:
    """Selections that no mixture of others beats, and ``picks`` in its place among them, as a JSON value.

    ``points``: bytes and forecast ``harm`` of each, by bytes; ``chosen``: which of them ``picks`` is. ``sites`` tells of each site where it changes
    on the way from few bytes to many: ``[from point, option, bytes, harm, bits per weight beyond the reference]``, the option as a place in
    ``options``.
    """
    size = table.cost(picks)
    others = [found for found in selections(table) if not 1 / _ALIKE < table.cost(found) / max(size, 1.0) < _ALIKE]
    points = sorted([*others, picks], key=table.cost)
    options: dict[str, int] = {}
    sites = {site: _runs([table.choices[site][found[site]] for found in points], site, options, beyond) for site in table.choices}
    return {
        "points": [{"bytes": round(table.cost(found)), "harm": table.forecast(found)} for found in points],
        "chosen": next(place for place, found in enumerate(points) if found is picks), "options": list(options), "sites": sites,
    }  # fmt: skip


def _runs(choices: list[Choice], site: str, options: dict[str, int], beyond: Callable[[str, str], float | None]) -> list[list[Any]]:
    """Where a site's choice changes from one point to the next, and to what."""
    changes = [place for place, choice in enumerate(choices) if not place or choice is not choices[place - 1]]
    told = lambda choice: (options.setdefault(level_of(choice.option), len(options)), choice.bytes, choice.harm)
    return [[place, *told(choices[place]), beyond(site, choices[place].option)] for place in changes]
