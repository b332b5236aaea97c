"""The frontier's picture and page: harm over size for each target, predicted and measured, and what the bytes are spent on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter
from matplotlib.transforms import Bbox

from modicum.core.budget import readable
from modicum.receipt.pages import render
from modicum.receipt.svg import GRID, INK, SOFT, TARGETS, inline, mark, rounded, settings, svg

# Decades of harm that are shown below the largest, and how far below the least that was measured.
_DECADES, _BELOW = 6, 5
# Height of the picture below its title.
_BODY = 0.89
# What a label's squared distance from its own line counts against its closeness to others.
_NEAR = 2e-5
_UNTOUCHED = ("keep", "not treated")
_GREYS = {"keep": "#b8bec6", "not treated": "#8b939c"}
# Characters of the longest name of which two stand beside each other on a phone.
_HALF = 24


def picture(frontier: Mapping[str, Any], *, narrow: bool = False) -> str:
    """SVG of predicted and measured harm over bytes, chosen and uniform, for each target; readable on light and on dark paper.

    ``narrow``: for a phone, without a title.
    """
    name = "frontier-narrow" if narrow else "frontier"
    with settings(name):
        figure = Figure(figsize=(4.7, 4.4) if narrow else (9, 5.6), layout=ConstrainedLayoutEngine(rect=(0, 0, 1, 1 if narrow else _BODY)))
        FigureCanvasAgg(figure)  # labels are placed by the extent of what is drawn
        axes = figure.add_subplot()
        traces = list(_traces(frontier))
        _scales(axes, frontier, traces)
        for trace in traces:
            trace.draw(axes)
        if not narrow:
            _titles(figure, frontier)
        figure.canvas.draw()
        figure.set_layout_engine("none")  # what stands now is what the labels are placed by
        _label(axes, traces)
        return svg(figure, name)


def page(frontier: Mapping[str, Any], drawn: str) -> str:
    """One self-contained HTML page for a frontier and its picture, without scripts or other files."""
    shapes = {"wide": drawn, "narrow": picture(frontier, narrow=True)}
    spent = [
        {shape: Markup(spending(curve, f"spending-{place}-{shape}", narrow=shape == "narrow")) for shape in shapes}
        for place, curve in enumerate(frontier["curves"])
    ]
    charts = {shape: Markup(inline(each)) for shape, each in shapes.items()}
    return render("frontier.html", frontier=frontier, charts=charts, spent=spent, kind=_metric(frontier))


# Lines


@dataclass(frozen=True)
class _Trace:
    """One line of the picture: predictions, and what was measured of them."""

    label: str
    colour: str
    chosen: bool
    points: Sequence[Mapping[str, Any]]

    @property
    def sizes(self) -> list[int]:
        return [point["bytes"] for point in self.points]

    @property
    def harms(self) -> list[float]:
        return [point["harm"] for point in self.points]

    @property
    def measured(self) -> list[Mapping[str, Any]]:
        return [point for point in self.points if point["measured"] is not None]

    def draw(self, axes: Axes) -> None:
        """The line of predictions, dots with intervals where it was measured."""
        bottom = axes.get_ylim()[0]
        heights = [max(harm, bottom / 100) for harm in self.harms]
        style = {"linewidth": 2.0} if self.chosen else {"linewidth": 1.2, "linestyle": (0, (4, 2.5))}
        axes.plot(self.sizes, heights, color=self.colour, zorder=3 if self.chosen else 2, **style)
        if found := self.measured:
            means = [point["measured"]["mean"] for point in found]
            low = [max(mean - point["measured"]["low"], 0) for mean, point in zip(means, found)]
            high = [max(point["measured"]["high"] - mean, 0) for mean, point in zip(means, found)]
            axes.errorbar(
                [point["bytes"] for point in found], means, yerr=[low, high], fmt="o", color=self.colour, markersize=6.5 if self.chosen else 5.5,
                markerfacecolor=self.colour if self.chosen else "none", markeredgewidth=1.3, elinewidth=1.3, capsize=2.5, zorder=4,
            )  # fmt: skip


def _traces(frontier: Mapping[str, Any]) -> Iterator[_Trace]:
    several = len(frontier["curves"]) > 1
    for place, curve in enumerate(frontier["curves"]):
        colour, of = TARGETS[place % len(TARGETS)], f"{curve['target']}, " if several else ""
        yield _Trace(f"{of}chosen", colour, True, [point["chosen"] for point in curve["points"]])
        yield _Trace(f"{of}uniform", colour, False, [point["uniform"] for point in curve["points"]])


def _scales(axes: Axes, frontier: Mapping[str, Any], traces: Sequence[_Trace]) -> None:
    """Logarithms of bytes and harm; bits per weight above."""
    axes.set(xscale="log", yscale="log", xlim=_wide([size for trace in traces for size in trace.sizes]), ylim=_high(traces))
    per_byte = 8 / frontier["model"]["parameters"]
    above = axes.secondary_xaxis("top", functions=(lambda size: size * per_byte, lambda bits: bits / per_byte))
    for axis, written in ((axes.xaxis, rounded), (above.xaxis, lambda bits: f"{bits:g}")):
        mark(axis, axes.get_xlim(), written)
    axes.set_xlabel("bytes of the weight files")
    above.set_xlabel("bits per weight")
    axes.set_ylabel(_metric(frontier))
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for panel in (axes, above):
        panel.tick_params(which="both", colors=SOFT, labelcolor=INK)
        panel.xaxis.label.set_color(INK)
        panel.spines[:].set_visible(False)
    axes.yaxis.label.set_color(INK)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda harm, _: f"{harm:g}"))
    axes.tick_params(axis="y", which="minor", left=False)


def _metric(frontier: Mapping[str, Any]) -> str:
    found = [point[kind]["measured"] for curve in frontier["curves"] for point in curve["points"] for kind in ("chosen", "uniform")]
    metrics = {summary["metric"] for summary in found if summary}
    unit = {"mean KL per token": "mean KL per token, nats"}
    return unit.get(metrics.pop(), "relative squared error of outputs") if metrics else "predicted harm, nats"


def _wide(sizes: Sequence[int]) -> tuple[float, float]:
    low, high = min(sizes), max(sizes)
    room = max((high / low) ** 0.04, 1.02)
    return low / room, high * room


def _high(traces: Sequence[_Trace]) -> tuple[float, float]:
    """From the least that is worth showing to above the most: predictions far below all that was measured are not."""
    measured = [point["measured"][name] for trace in traces for point in trace.measured for name in ("mean", "high")]
    seen = [harm for harm in (*measured, *(harm for trace in traces for harm in trace.harms)) if harm > 0]
    top = max(seen, default=1.0)
    least = min((mean / _BELOW for mean in measured if mean > 0), default=0.0)
    return max(min(seen, default=0.1) / 1.6, top * 10.0**-_DECADES, least), top * 2.5


def _titles(figure: Figure, frontier: Mapping[str, Any]) -> None:
    model = frontier["model"]
    title = f"{model['name']}: what every size costs"
    size = f"{model['parameters']:,} parameters, {readable(model['bytes'])}"
    said = f"{size}. Lines are predicted, dots measured on test sequences with 95 % intervals."
    figure.text(0.01, 0.985, title, va="top", fontsize=13, fontweight="bold", color=INK)
    figure.text(0.01, 0.935, said, va="top", fontsize=9.5, color=SOFT)


# Labels at the lines


def _label(axes: Axes, traces: Sequence[_Trace]) -> None:
    """Write each line's name beside it, where it covers nothing and no other line is nearer."""
    lines = [_path(axes, trace) for trace in traces]
    taken: list[Bbox] = []
    for place, trace in enumerate(traces):
        text = axes.text(0, 0, trace.label, transform=axes.transAxes, color=trace.colour, fontsize=10.5, va="bottom")
        if trace.chosen:
            text.set_fontweight("bold")
        size = text.get_window_extent()
        spots = [spot for pixel in _path(axes, trace, steps=3) for spot in _beside(pixel)]
        boxes = [Bbox.from_bounds(x - align * size.width, y - size.height / 2, size.width, size.height) for x, y, align in spots]
        others = np.concatenate([*lines[:place], *lines[place + 1 :]])
        if boxes:
            taken.append(min(boxes, key=lambda box: _crowded(box, lines[place], others, taken, axes.bbox)))
            text.set_position(tuple(axes.transAxes.inverted().transform((taken[-1].x0, taken[-1].y0))))
        else:
            text.remove()  # nothing of the line is in view


def _path(axes: Axes, trace: _Trace, steps: int = 8) -> np.ndarray:
    """Pixels along a line and of its dots, as far as they are in view: (points, 2)."""
    heights = np.maximum(trace.harms, axes.get_ylim()[0] / 100)
    ends = axes.transData.transform(np.column_stack([trace.sizes, heights]))
    between = [a + (b - a) * step / steps for a, b in pairwise(ends) for step in range(steps)]
    dots = [(point["bytes"], max(point["measured"][name], heights.min())) for point in trace.measured for name in ("low", "mean", "high")]
    found = np.array([*between, ends[-1], *(axes.transData.transform(dots) if dots else [])])
    return found[np.array([axes.bbox.contains(x, y) for x, y in found])]


def _beside(place: np.ndarray) -> list[tuple[float, float, float]]:
    """Places for a label near a pixel: where its side's middle stands, and which side (0 left, 1 right, between: within it) that is."""
    x, y = place
    return [(x + across, y + up, align) for align, across in ((0, 9), (1, -9), (0.5, 0)) for up in (-40, -26, -14, 0, 14, 26, 40)]


def _crowded(box: Bbox, own: np.ndarray, others: np.ndarray, taken: Sequence[Bbox], room: Bbox) -> tuple[float, ...]:
    """What speaks against a place, the worst first: outside, on a label, on a line, nearer to another line than to its own, near to others."""
    outside = not (room.x0 + 4 <= box.x0 and box.x1 <= room.x1 - 4 and room.y0 + 4 <= box.y0 and box.y1 <= room.y1 - 4)
    mine, theirs = _distances(box, own), _distances(box, others)
    covered, hidden = (mine < 7).sum() + (theirs < 7).sum(), sum(box.padded(4).overlaps(other) for other in taken)
    apart, strange = float(mine.min(initial=np.inf)), float(theirs.min(initial=np.inf))
    return outside, hidden, covered, strange < 1.3 * apart, (1 / np.maximum(theirs, 4) ** 2).sum() + _NEAR * apart**2


def _distances(box: Bbox, pixels: np.ndarray) -> np.ndarray:
    """Pixels from a box to each of some points: (points,)."""
    across = np.maximum(np.maximum(box.x0 - pixels[:, 0], pixels[:, 0] - box.x1), 0)
    up = np.maximum(np.maximum(box.y0 - pixels[:, 1], pixels[:, 1] - box.y1), 0)
    return np.hypot(across, up)


# What the bytes are spent on


def spending(curve: Mapping[str, Any], name: str, *, narrow: bool = False) -> str:
    """SVG of the share of the bytes by option over size, for one target; ``name`` tells it from others on its page, ``narrow`` is for a phone."""
    with settings(name):
        points = [point["chosen"] for point in curve["points"]]
        sizes = [point["bytes"] for point in points]
        options = _ordered(points)
        columns = 2 if max(map(len, options)) <= _HALF else 1
        figure = Figure(figsize=(4.7, 3.6 + 0.25 * -(-len(options) // columns)) if narrow else (9, 3.4), layout="constrained")
        axes = figure.add_subplot()
        layers = [[100 * point["shares"].get(option, 0.0) for point in points] for option in options]
        axes.stackplot(sizes, layers, labels=options, colors=_colours(options), linewidth=0)
        axes.set(xscale="log", xlim=(min(sizes), max(max(sizes), min(sizes) + 1)), ylim=(0, 100))
        mark(axes.xaxis, axes.get_xlim(), rounded)
        axes.set_xlabel(f"bytes of the weight files, target {curve['target']}")
        axes.set_ylabel("% of the bytes")
        axes.tick_params(colors=SOFT, labelcolor=INK)
        axes.spines[:].set_visible(False)
        axes.xaxis.label.set_color(INK)
        axes.yaxis.label.set_color(INK)
        handles, labels = axes.get_legend_handles_labels()
        place = {"loc": "outside lower left", "ncols": columns} if narrow else {"loc": "outside right upper"}
        figure.legend(handles[::-1], labels[::-1], frameon=False, labelcolor=INK, fontsize=10 if narrow else 9, **place)
        return inline(svg(figure, name))


def _ordered(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """Options from those of small sizes to those of large ones; what is left as it was comes last."""
    weight: dict[str, float] = {}
    moment: dict[str, float] = {}
    for place, point in enumerate(points):
        for option, share in point["shares"].items():
            weight[option] = weight.get(option, 0.0) + share
            moment[option] = moment.get(option, 0.0) + share * place
    return sorted(
        weight, key=lambda option: (option in _UNTOUCHED, option == "not treated", moment[option] / max(weight[option], 1e-12), option)
    )


def _colours(options: Sequence[str]) -> list[Any]:
    treated = [option for option in options if option not in _UNTOUCHED]
    shades = matplotlib.colormaps["viridis"](np.linspace(0.2, 0.9, max(len(treated), 1)))
    return [_GREYS.get(option) or shades[treated.index(option)] for option in options]
