"""What a result lost, in one plain sentence, what more bytes would give, and what does better at these."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from modicum.allocate.integer_program import integer_program
from modicum.core.budget import readable
from modicum.core.plan import Limits, Picks, Table
from modicum.judge.degree import BROKEN, DEGREES, degree, nearly_none

# A result that loses so many times its forecast is told.
SURPRISE = 1.5
# Share of a near-lossless result's loss below which a forecast has nothing to tell.
_TELLING = 0.1
# Where arithmetic alone differs by as much, a forecast means nothing.
_NOISE = 1e-3
# Bytes of the next step up, and the share of the loss that it, or anything else, must take away to be worth a word.
_STEP, _WORTH = 1.25, 0.25
# Prices of a byte that are tried for the frontier, and its largest harm: beyond, nothing is worth having.
_PRICES, _RUINED = 24, DEGREES[-1][0]
# Sizes closer than this are one.
_ALIKE = 1.05


def verdict(
    quality: Mapping[str, Any], table: Table | None = None, picks: Picks | None = None, limits: Limits | None = None,
    beside: Sequence[str] = (),
) -> str:  # fmt: skip
    """One sentence: what was lost, what the next step up in bytes and the frontier's knee are forecast to lose, and what does better ``beside``."""
    figure = f"{quality['mean']:.3g} {_unit(quality)}"
    if "perplexity_original" in quality:
        figure += f", perplexity times {quality['perplexity'] / quality['perplexity_original']:.3g}"
    name = degree(quality)
    said = "broken: do not use it" if name == BROKEN else name if name == "near-lossless" else f"a {name} loss"
    clauses = [f"{said} ({figure})"]
    if table is not None and picks and limits is not None:
        clauses += _more(quality["mean"], table, picks, limits)
    return "; ".join([*clauses, *beside]) + "."


def _more(lost: float, table: Table, picks: Picks, limits: Limits) -> Iterator[str]:
    """The next step up where it takes away much of the loss, and the knee where that is another size."""
    now, size = table.forecast(picks), table.cost(picks)
    if now <= 0:
        return
    above = integer_program(table, {name: most * _STEP for name, most in (limits or {"bytes": size}).items()})
    told = table.cost(above) if table.forecast(above) <= (1 - _WORTH) * now else 0.0
    if told:
        yield f"{readable(told)} is forecast to lose {table.forecast(above) / now:.0%} of that"
    bend = knee(frontier(table))
    if bend is not None and not any(1 / _ALIKE < bend[0] / known < _ALIKE for known in (size, told) if known):
        yield f"the knee of the frontier is {readable(bend[0])}, forecast to lose {really(bend[1], now, lost):.2g}"


def really(forecast: float, now: float, lost: float) -> float:
    """A forecast scaled by what the forecast ``now`` of this result really lost, where that is more than arithmetic alone."""
    return forecast * lost / now if lost > _NOISE else forecast


def frontier(table: Table) -> list[tuple[float, float]]:
    """Bytes and forecast of the ``selections``, by bytes."""
    return [(table.cost(picks), table.forecast(picks)) for picks in selections(table)]


def selections(table: Table) -> list[Picks]:
    """Those that no mixture of others beats, by bytes: of least harm and bytes at some price of a byte."""
    least_harm = table.best(lambda _, choice: (choice.harm, float(choice.bytes)))
    found = {(table.cost(picks), table.harm(picks)): picks for picks in (table.cheapest(), least_harm)}
    (low, worst), (high, best) = min(found), max(found)
    if high > low and worst > best:
        slope = (worst - best) / (high - low)
        for price in slope * np.geomspace(1e-3, 1e3, _PRICES):
            picks = table.best(lambda _, choice, price=price: (choice.harm + price * choice.bytes,))
            found[table.cost(picks), table.harm(picks)] = picks
    return [found[point] for point in sorted(found)]


def knee(points: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """The point farthest below the line between the ends of a frontier, what is ruined left out; None where nothing lies below it."""
    usable = [point for point in points if point[1] <= _RUINED]
    if len(usable) < 3 or usable[0][1] <= usable[-1][1]:
        return None
    (low, worst), (high, best) = usable[0], usable[-1]
    below = lambda point: 1 - (point[0] - low) / (high - low) - (point[1] - best) / (worst - best)
    bend = max(usable, key=below)
    return bend if below(bend) > 0 else None


def elsewhere(name: str, table: Table, limits: Limits, forecast: float, lost: float) -> str:
    """A clause where another target, by its ``table``, is forecast to lose clearly less within the same limits; otherwise nothing."""
    found = integer_program(table, limits)
    if forecast <= 0 or not table.fits(found, limits) or table.forecast(found) > (1 - _WORTH) * forecast:
        return ""
    return f"--target {name} is forecast to lose {really(table.forecast(found), forecast, lost):.2g} at these bytes"


def surprise(quality: Mapping[str, Any], forecast: float) -> str:
    """An event where a result lost much more than was forecast, otherwise nothing; of values a forecast is half the relative squared error."""
    logits = "KL" in quality["metric"]
    forecast = forecast if logits else 2 * forecast
    if quality["mean"] <= max(SURPRISE * forecast, _TELLING * nearly_none(quality["metric"])):
        return ""
    return (
        f"forecast: the result loses {quality['mean']:.3g} {_unit(quality)}, {forecast:.3g} were forecast. "
        "Trust the measured figure; a longer --search-time judges more plans before choosing."
    )


def _unit(quality: Mapping[str, Any]) -> str:
    return "nats per token" if "KL" in quality["metric"] else "of the outputs squared"
