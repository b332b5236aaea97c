"""The picture of a change: how much of each weight it moves, and in how few directions, weight by weight in the model's order."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from modicum.core.errors import SettingError
from modicum.receipt.svg import GRID, INK, SOFT, TARGETS, settings, svg

# Inches: a row, what stands around all of them, the width; rows at most, the largest changes where there are more.
_ROW, _AROUND, _WIDTH, _MOST = 0.24, 1.2, 9.6, 60
# Of the first direction, to 2, to 4, ...; the last of all that are left, on light and dark paper alike.
_TONES = ("#365c8d", "#1f8f8c", "#35b779", "#90d743", "#d8cf2f", "#a8b0b8")


def spectrum(rows: Sequence[Mapping[str, Any]]) -> str:
    """An SVG of what ``delta.opened.described`` tells with a base: bars of relative size, and beside each what share of its energy lies in the first
    direction, the first two, the first four, and so on. Raises ``SettingError`` where none changes.
    """
    there = [row for row in rows if row.get("spectrum")]
    if not there:
        raise SettingError("picture: a weight that changes must be there to be drawn, on the base that is named; none is.")
    kept = sorted(range(len(there)), key=lambda at: -there[at]["relative"])[:_MOST]
    shown = [there[at] for at in sorted(kept)]
    with settings("spectrum"):
        figure = Figure(figsize=(_WIDTH, _AROUND + _ROW * len(shown)), dpi=72, layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        places, labels = list(range(len(shown))), [_short(row["weight"]) for row in shown]
        left.barh(places, [100 * row["relative"] for row in shown], color=TARGETS[0], height=0.7)
        left.set_yticks(places, labels)
        left.set_ylim(len(shown) - 0.4, -0.6)
        left.set_xlabel("size, in % of the weight", color=INK)
        _energies(right, [row["spectrum"] for row in shown])
        for axes in (left, right):
            _dressed(axes)
        said = "" if len(shown) == len(there) else f"the {len(shown)} largest of {len(there)} changes"
        figure.legend(loc="outside upper right", ncols=6, frameon=False, labelcolor=INK, fontsize=10, title=said or None)
        return svg(figure, "spectrum")


def _energies(axes: Axes, shares: Sequence[Mapping[str, float]]) -> None:
    """Stacked bars of what each doubling of directions adds to the energy that is told."""
    last, before = len(_TONES) - 1, [0.0] * len(shares)
    for place, tone in enumerate(_TONES):
        # A weight of fewer directions has all of its energy in them.
        until = [1.0 if place == last else each.get(str(2**place), 1.0) for each in shares]
        name = "first direction" if not place else "all others" if place == last else f"to {2**place}"
        parts = [100 * (now - then) for now, then in zip(until, before)]
        axes.barh(range(len(shares)), parts, left=[100 * then for then in before], color=tone, height=0.7, label=name)
        before = until
    axes.set_xlim(0, 100)
    axes.set_xlabel("energy, in %, by directions", color=INK)


def _short(weight: str) -> str:
    return re.sub(r"^(model\.|transformer\.)?(layers|h|blocks)\.", "", weight).removesuffix(".weight")


def _dressed(axes: Axes) -> None:
    axes.grid(axis="x", color=GRID, linewidth=1)
    axes.set_axisbelow(True)
    axes.tick_params(colors=SOFT, labelcolor=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
