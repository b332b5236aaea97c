"""What a result lost, in one plain sentence, and what more bytes would give."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from modicum.allocate.integer_program import integer_program
from modicum.core.budget import readable
from modicum.core.plan import Limits, Picks, Table

# Nats per token up to which a loss is called by a name: 0.01 is a hundredth more perplexity, which no benchmark of a few thousand questions
# can tell from chance; 0.1 what four good bits cost; at 0.5 perplexity is 1.6 times the original's, and answers are other answers.
DEGREES = ((0.01, "near-lossless"), (0.1, "small"), (0.5, "large"))
# Relative squared errors of outputs that are no logits.
ERRORS = ((1e-3, "near-lossless"), (1e-2, "small"), (1e-1, "large"))
BROKEN = "broken"
# A result that loses so many times its forecast is told.
SURPRISE = 1.5
# Where arithmetic alone differs by as much, a forecast means nothing.
_NOISE = 1e-3
# Bytes of the next step up, and the share of the loss that it must take away to be worth a word.
_STEP, _WORTH = 1.25, 0.25


def degree(quality: Mapping[str, Any]) -> str:
    """What was lost: near-lossless, small, large or broken; by the divergence, and by what perplexity rose to where that is more."""
    logits = "KL" in quality["metric"]
    lost, degrees = quality["mean"], DEGREES if logits else ERRORS
    if "perplexity_original" in quality:
        lost = max(lost, math.log(max(quality["perplexity"], 1e-300) / quality["perplexity_original"]))
    return next((name for most, name in degrees if lost < most), BROKEN)


def verdict(quality: Mapping[str, Any], table: Table | None = None, picks: Picks | None = None, limits: Limits | None = None) -> str:
    """One sentence: what was lost, and what the next step up in bytes is forecast to take away of it."""
    figure = f"{quality['mean']:.3g} {'nats per token' if 'KL' in quality['metric'] else 'of the outputs squared'}"
    if "perplexity_original" in quality:
        figure += f", perplexity times {quality['perplexity'] / quality['perplexity_original']:.3g}"
    name = degree(quality)
    said = "broken: do not use it" if name == BROKEN else name if name == "near-lossless" else f"a {name} loss"
    return f"{said} ({figure}){_next(table, picks, limits)}."


def _next(table: Table | None, picks: Picks | None, limits: Limits | None) -> str:
    if table is None or not picks or not limits or "bytes" not in limits:
        return ""
    now, more = table.harm(picks), {**limits, "bytes": limits["bytes"] * _STEP}
    above = integer_program(table, more)
    if now <= 0 or table.harm(above) > (1 - _WORTH) * now:
        return ""
    return f"; {readable(table.cost(above))} is forecast to lose {table.harm(above) / now:.0%} of that"


def surprise(quality: Mapping[str, Any], forecast: float) -> str:
    """An event where a result lost much more than was forecast, otherwise nothing."""
    if "KL" not in quality["metric"] or quality["mean"] <= max(SURPRISE * forecast, _NOISE):
        return ""
    return (
        f"forecast: the result loses {quality['mean']:.3g} nats per token, {forecast:.3g} were forecast. "
        "Trust the measured figure; a longer --search-time judges more plans before choosing."
    )
