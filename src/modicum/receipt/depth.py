"""The chart of a receipt's blocks: how far each one's output is from the original's, and would be had nothing been measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

from modicum.receipt.chart import SHAPES
from modicum.receipt.svg import GRID, INK, SOFT, TARGETS, inline, mark, settings, svg

# Runs of a receipt in the order in which they are drawn: name, colour, dashes, and what it is.
_RUNS = (("before", SOFT, (0, (4, 2.5)), "the same plan without data"), ("after", TARGETS[1], "solid", "this result"))
# Inches, lower than the frontier's; and blocks that have a name each.
_HEIGHT, _NAMED = 0.72, {"wide": 24, "narrow": 10}


def depth(by_block: Mapping[str, Any]) -> dict[str, str]:
    """SVG by shape of the relative error over the blocks in call order; none where fewer than two blocks tell of it."""
    rows = by_block.get("rows", [])
    told = [value for row in rows for name, *_ in _RUNS if (value := row.get(name))]
    if len(rows) < 2 or not told:
        return {}
    return {shape: _drawn(rows, (min(told) / 1.3, max(told) * 1.3), shape) for shape in SHAPES}


def _drawn(rows: Sequence[Mapping[str, Any]], limits: tuple[float, float], shape: str) -> str:
    width, height = SHAPES[shape]
    with settings(f"depth-{shape}"):
        figure = Figure(figsize=(width, _HEIGHT * height), dpi=72, layout="constrained")
        axes = figure.add_subplot()
        axes.set(yscale="log", ylim=limits, xlim=(-0.5, len(rows) - 0.5))
        for name, colour, dashes, label in _RUNS:
            for places in _unbroken(rows, name):
                values = [rows[place][name] for place in places]
                axes.plot(places, values, color=colour, linestyle=dashes, linewidth=2, marker="o", markersize=3.5, label=label)
                label = "_"  # one entry of the legend for all pieces of a line
        mark(axes.yaxis, limits, lambda value: f"{100 * value:g} %")
        axes.grid(axis="y", color=GRID, linewidth=1)
        axes.set_axisbelow(True)
        axes.xaxis.set_major_locator(FixedLocator(range(0, len(rows), -(-len(rows) // _NAMED[shape]))))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda place, _: rows[int(place)]["block"].rpartition(".")[2]))
        axes.set_xlabel(" then ".join(name for name, _ in groupby(rows, _list)) or "blocks", color=INK)
        axes.tick_params(colors=SOFT, labelcolor=INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(GRID)
        figure.legend(loc="outside upper left", ncols=2 if shape == "wide" else 1, frameon=False, labelcolor=INK, fontsize=10)
        return inline(svg(figure, f"depth-{shape}"))


def _list(row: Mapping[str, Any]) -> str:
    """The list that a block stands in."""
    return row["block"].rpartition(".")[0]


def _unbroken(rows: Sequence[Mapping[str, Any]], name: str) -> Iterator[list[int]]:
    """Places of blocks that a line goes through: it breaks where a list ends, and where a block was left out."""
    for (_, told), places in groupby(range(len(rows)), lambda place: (_list(rows[place]), bool(rows[place].get(name)))):
        if told:
            yield list(places)
