"""The frontier of a receipt: what other sizes are expected to lose, beside what was forecast and measured, with names for how much that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from modicum.judge.degree import BROKEN, DEGREES, ERRORS
from modicum.receipt.svg import GRID, INK, SOFT, TARGETS, inline, mark, rounded, settings, svg

# Inches: for a screen, and for a phone, where a third of the width would leave words of a third of the size.
SHAPES = {"wide": (8.8, 3.7), "narrow": (4.7, 4.0)}
# Decades of loss that are shown below the largest.
_DECADES = 5


@dataclass(frozen=True)
class Chart:
    """An SVG, and where in it each plan stands, in its own units."""

    svg: str
    places: list[tuple[float, float]]


def chart(plans: Mapping[str, Any], quality: Mapping[str, Any], shape: str) -> Chart:
    """The loss of every plan over its size, both in logarithms; of the receipt's own what was measured, with its interval."""
    points, own = plans["points"], plans["points"][plans["chosen"]]
    with settings(f"plans-{shape}"):
        figure = Figure(figsize=SHAPES[shape], dpi=72, layout="constrained")
        axes = figure.add_subplot()
        top = max(point["lost"] for point in points)
        floor = max(min((point["lost"] for point in points if point["lost"] > 0), default=1e-6) / 2, top * 10.0**-_DECADES)
        heights = [max(point["lost"], floor) for point in points]
        axes.set(xscale="log", yscale="log", ylim=(floor / 1.3, top * 2), xlim=wide([point["bytes"] for point in points]))
        bands(axes, quality)
        sizes = [point["bytes"] for point in points]
        axes.plot(
            sizes, [max(point["forecast"], floor) for point in points], color=SOFT, linewidth=1.1, linestyle=(0, (4, 2.5)), label="forecast"
        )
        axes.plot(sizes, heights, color=TARGETS[0], linewidth=2, marker="o", markersize=3.5, label="expected, as this one turned out")
        low, high = (max(abs(quality[name] - quality["mean"]), 0) for name in ("low", "high"))
        at, said = max(own["lost"], floor), "this result, measured"
        axes.errorbar(
            [own["bytes"]], [at], yerr=[[min(low, at * 0.99)], [high]], fmt="D", color=TARGETS[1], markersize=7, capsize=3, label=said
        )
        dress(axes, figure, quality)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # what stands now is where the plans are pointed at
        pixels = axes.transData.transform(list(zip(sizes, heights)))
        height = figure.bbox.height
        return Chart(inline(svg(figure, f"plans-{shape}")), [(round(float(x), 2), round(float(height - y), 2)) for x, y in pixels])


def bands(axes: Axes, quality: Mapping[str, Any], points: Sequence[tuple[float, float]] = ()) -> None:
    """What a loss is called, from limit to limit: a name stands on the right, or on the left where some of ``points`` lie there."""
    degrees = DEGREES if "KL" in quality["metric"] else ERRORS
    low, high = axes.get_ylim()
    for limit, _ in degrees:
        if low < limit < high:
            axes.axhline(limit, color=GRID, linewidth=1, zorder=0)
    edges = [0.0, *(limit for limit, _ in degrees), float("inf")]
    for below, above, name in zip(edges, edges[1:], [*(name for _, name in degrees), BROKEN]):
        bottom, ceiling = max(below, low), min(above, high)
        if ceiling / bottom > 1.6:
            (left, right) = axes.get_xlim()
            far = any(x > right * (left / right) ** 0.35 and bottom < y < ceiling for x, y in points)
            axes.annotate(
                name, (0.01 if far else 0.995, ceiling), xycoords=("axes fraction", "data"), ha="left" if far else "right", va="top", color=SOFT,
                fontsize=9.5, textcoords="offset points", xytext=(0, -2),
            )  # fmt: skip


def wide(sizes: Sequence[float]) -> tuple[float, float]:
    """Limits of an axis of sizes."""
    room = max((max(sizes) / min(sizes)) ** 0.04, 1.02)
    return min(sizes) / room, max(sizes) * room


def dress(axes: Axes, figure: Figure, quality: Mapping[str, Any]) -> None:
    """Names, marks and a legend."""
    low, high = axes.get_xlim()
    mark(axes.xaxis, (low, low * (high / low) ** (SHAPES["wide"][0] / figure.get_figwidth())), rounded)  # fewer where there is less room
    axes.set_xlabel("bytes of the weight files", color=INK)
    axes.set_ylabel("nats per token" if "KL" in quality["metric"] else quality["metric"], color=INK)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.tick_params(which="both", colors=SOFT, labelcolor=INK)
    axes.tick_params(axis="y", which="minor", left=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper left", ncols=3 if figure.get_figwidth() > 6 else 1, frameon=False, labelcolor=INK, fontsize=10)
