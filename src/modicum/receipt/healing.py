"""The chart of a receipt's healing: the loss of every update, of all rounds one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from modicum.receipt.chart import SHAPES
from modicum.receipt.svg import GRID, INK, SOFT, TARGETS, inline, settings, svg

# Inches, lower than the frontier's; updates over which the second line is a mean, as a share of all.
_HEIGHT, _SMOOTH = 0.6, 0.1


def curve(healing: Mapping[str, Any]) -> dict[str, str]:
    """SVG by shape of the losses; none where there are fewer than two."""
    rounds = [each["losses"] for each in (*healing.get("rounds", []), healing)]
    return {shape: _drawn(rounds, shape) for shape in SHAPES} if sum(map(len, rounds)) > 1 else {}


def _drawn(rounds: list[list[float]], shape: str) -> str:
    width, height = SHAPES[shape]
    with settings(f"healing-{shape}"):
        figure = Figure(figsize=(width, _HEIGHT * height), dpi=72, layout="constrained")
        axes, begin, names = figure.add_subplot(), 1, ["each update", "mean"]
        for losses in rounds:
            places = np.arange(begin, begin + len(losses))
            span = max(1, round(_SMOOTH * len(losses)))
            axes.plot(places, losses, color=SOFT, linewidth=1, label=names[0])
            if len(losses) >= span:
                mean = np.convolve(losses, np.ones(span) / span, "valid")
                axes.plot(places[span - 1 :], mean, color=TARGETS[1], linewidth=2, label=names[1])
            begin, names = begin + len(losses), ["_", "_"]
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", color=GRID, linewidth=1)
        axes.set_axisbelow(True)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("updates", color=INK)
        axes.tick_params(colors=SOFT, labelcolor=INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(GRID)
        figure.legend(loc="outside upper left", ncols=2, frameon=False, labelcolor=INK, fontsize=10)
        return inline(svg(figure, f"healing-{shape}"))
