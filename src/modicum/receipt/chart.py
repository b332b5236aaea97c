"""The chart of a receipt: bits per weight of every site in call order, so that area is bytes, and below it predicted harm."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline

from modicum.core.budget import readable

# Reasons of layers that stand in a site all the same, where they are counted.
_WITHIN_SITES = ("kept by request", "kept by plan")
_ITEM_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
_UNTOUCHED = ("keep", "not treated")
# Above this many bars, the lines between them would be all there is to see.
_MOST_LINES = 300
_MOST_LABELS = 12


@dataclass(frozen=True)
class Scheme:
    """Colours of a chart: ink, the grey of what was left as it was, and the range of the colour map for options by bits."""

    name: str
    ink: str
    paper: str
    grey: str
    colours: tuple[float, float]


SCHEMES = (Scheme("light", "#24292f", "#ffffff", "#b8bec6", (0.1, 0.85)), Scheme("dark", "#d8dee6", "#14171b", "#59616b", (0.3, 0.95)))


@dataclass(frozen=True)
class _Bar:
    """A site in the chart: as wide as its weights, as high as its bits per weight, so that its area is its bytes."""

    option: str
    weights: float
    bytes: float
    harm: float | None

    @property
    def bits(self) -> float:
        return 8 * self.bytes / self.weights


def chart(receipt: Mapping[str, Any], scheme: Scheme) -> str:
    """SVG of bits per weight, and predicted harm where it was measured, over the weights in call order; area is bytes."""
    bars = _bars(receipt)
    rows = 2 if any(bar.harm for bar in bars) else 1
    # The salt makes names inside the SVG repeatable, and different in the two charts that share a page.
    with matplotlib.rc_context({"svg.hashsalt": f"modicum-{scheme.name}", "svg.fonttype": "none", "text.parse_math": False}):
        figure = Figure(figsize=(10, 2.6 + 1.4 * rows), layout="constrained")
        FigureCanvasSVG(figure)
        panels = figure.subplots(rows, 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": [2, 1][:rows]})[:, 0]
        colours = _colours(bars, scheme)
        heights = {"bits per weight": [bar.bits for bar in bars], "predicted harm": [bar.harm or 0.0 for bar in bars]}
        for panel, (label, found) in zip(panels, heights.items()):
            _draw(panel, bars, found, colours, scheme)
            panel.set_ylabel(label)
        panels[-1].set_xlabel("millions of weights in call order, those outside all sites last (above, area is bytes)")
        _legend(figure, bars, colours, scheme)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


def _bars(receipt: Mapping[str, Any]) -> list[_Bar]:
    bars = [_Bar(site["option"], site["weights"], site["bytes"], site["harm"]) for site in receipt["sites"] if site["weights"]]
    item = _ITEM_BYTES.get(receipt["model"]["dtype"], 4)
    outside = [row for row in receipt["coverage"]["untreated"] if row["reason"] not in (*_WITHIN_SITES, "vector") and row["bytes"]]
    return bars + [_Bar("not treated", row["bytes"] / item, row["bytes"], None) for row in outside]


def _colours(bars: Sequence[_Bar], scheme: Scheme) -> dict[str, Any]:
    """A colour for each option, from few bits to many along one map; what was left as it was is grey, and last."""
    totals: dict[str, list[float]] = {}
    for bar in bars:
        size = totals.setdefault(bar.option, [0.0, 0.0])
        size[0] += bar.bytes
        size[1] += bar.weights
    ordered = sorted(totals, key=lambda option: (option in _UNTOUCHED, totals[option][0] / totals[option][1], option))
    treated = [option for option in ordered if option not in _UNTOUCHED]
    low, high = scheme.colours
    shades = [low + (high - low) * index / max(len(treated) - 1, 1) for index in range(len(treated))]
    return dict.fromkeys(ordered, scheme.grey) | dict(zip(treated, matplotlib.colormaps["viridis"](shades)))


def _draw(panel: Axes, bars: Sequence[_Bar], heights: Sequence[float], colours: Mapping[str, Any], scheme: Scheme) -> None:
    rectangles: dict[str, list[Outline]] = {option: [] for option in colours}
    left = 0.0
    for bar, height in zip(bars, heights):
        right = left + bar.weights / 1e6
        corners = [(left, 0.0), (left, height), (right, height), (right, 0.0), (left, 0.0)]
        rectangles[bar.option].append(Outline(corners, closed=True))
        left = right
    # One path for each option keeps the page small where sites are thousands.
    for option, found in rectangles.items():
        outline = Outline.make_compound_path(*found)
        panel.add_patch(
            PathPatch(outline, facecolor=colours[option], edgecolor=scheme.paper, linewidth=0.4 if len(bars) <= _MOST_LINES else 0)
        )
    panel.set(xlim=(0, left), ylim=(0, 1.05 * max(heights) or 1))
    panel.tick_params(colors=scheme.ink)
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color(scheme.ink)
    panel.xaxis.label.set_color(scheme.ink)
    panel.yaxis.label.set_color(scheme.ink)


def _legend(figure: Figure, bars: Sequence[_Bar], colours: Mapping[str, Any], scheme: Scheme) -> None:
    sizes = {option: sum(bar.bytes for bar in bars if bar.option == option) for option in colours}
    weights = {option: sum(bar.weights for bar in bars if bar.option == option) for option in colours}
    largest = sorted(colours, key=lambda option: -sizes[option])[:_MOST_LABELS]
    shown = [option for option in colours if option in largest]
    handles = [PathPatch(Outline.unit_rectangle(), facecolor=colours[option], linewidth=0) for option in shown]
    labels = [f"{readable(sizes[option])}  {option} ({8 * sizes[option] / weights[option]:.2f} bits)" for option in shown]
    figure.legend(handles, labels, loc="outside upper left", ncols=2, frameon=False, labelcolor=scheme.ink, fontsize=9)
