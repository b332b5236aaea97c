"""Several results of one original on one page: what each lost at its size, and what differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from modicum.core.errors import SettingError
from modicum.fit.compared import receipt_in, side_by_side
from modicum.fit.receipts import as_written
from modicum.judge.degree import degree
from modicum.receipt.chart import SHAPES, bands, dress, wide
from modicum.receipt.evaluated import beside
from modicum.receipt.pages import render
from modicum.receipt.svg import TARGETS, inline, settings, svg

# Half of a dot, a digit, and where a number may stand, in points from its dot; earlier ones are better.
_DOT, _WIDE, _HIGH = 6, 8, 13
_BESIDE = tuple(
    (right, up) for far in (12, 18, 26) for right, up in ((far, 5), (far, -5), (-far, 5), (-far, -5), (0, far + 4), (0, -far - 4))
)


def comparison(places: Sequence[str | Path]) -> str:
    """One self-contained HTML page, without scripts, of folders that ``fit`` wrote and of files that ``modicum eval --json`` wrote of other models.

    Raises ``SettingError`` as ``compare`` does.
    """
    found = _found([Path(place) for place in places])
    with as_written():
        judged = [(number, one) for number, one in enumerate(found["results"], 1) if one["bytes"] and "mean" in (one["quality"] or {})]
        alike = len({one["quality"]["metric"] for _, one in judged}) == 1
        charts = {shape: Markup(_chart(judged, shape)) for shape in SHAPES} if alike else {}
        degrees = [degree(one["quality"]) if "mean" in (one["quality"] or {}) else "" for one in found["results"]]
        kinds = list(dict.fromkeys(kind for one in found["results"] for kind in one["kinds"]))
        return render("comparison.html", found=found, charts=charts, degrees=degrees, kinds=kinds)


def _found(places: Sequence[Path]) -> dict[str, Any]:
    """What is the same and what differs; models that were judged alone come last."""
    files = [place for place in places if place.is_file()]
    folders = [place for place in places if place not in files]
    if not folders:
        raise SettingError(f"report: a folder that fit wrote must be among what is compared, {len(files)} evaluations came. Name one.")
    found = side_by_side(folders)
    with as_written():
        for result, quality in (beside(file, receipt_in(folders[0])) for file in files):
            found["results"].append(result)
            found["quality"].append(quality)
    return found


def _chart(judged: Sequence[tuple[int, Mapping[str, Any]]], shape: str) -> str:
    """Loss over size, a dot with its interval for each result, under its number."""
    quality, sizes = judged[0][1]["quality"], [result["bytes"] for _, result in judged]
    losses = [max(result["quality"]["mean"], 1e-7) for _, result in judged]
    with settings(f"compared-{shape}"):
        figure = Figure(figsize=SHAPES[shape], dpi=72, layout="constrained")
        axes = figure.add_subplot()
        axes.set(xscale="log", yscale="log", xlim=wide([min(sizes) / 1.1, max(sizes) * 1.1]), ylim=(min(losses) / 3, max(losses) * 3))
        bands(axes, quality, list(zip(sizes, losses)))
        for place, ((_, result), loss) in enumerate(zip(judged, losses)):
            low, high = (abs(result["quality"][name] - result["quality"]["mean"]) for name in ("low", "high"))
            colour = TARGETS[place % len(TARGETS)]
            axes.errorbar([result["bytes"]], [loss], yerr=[[min(low, 0.99 * loss)], [high]], fmt="o", color=colour, markersize=8, capsize=3)
        dress(axes, figure, quality)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # what stands now is what the numbers are placed by
        _number(axes, [number for number, _ in judged], list(zip(sizes, losses)))
        return inline(svg(figure, f"compared-{shape}"))


def _number(axes: Axes, numbers: Sequence[int], points: Sequence[tuple[float, float]]) -> None:
    """Write each dot's number beside it, where it covers least of the dots, the names, and the numbers before it."""
    places = axes.transData.transform(points)
    taken = [Bbox.from_extents(x - _DOT, y - _DOT, x + _DOT, y + _DOT) for x, y in places]
    taken += [text.get_window_extent() for text in axes.texts]
    for place, (number, (x, y)) in enumerate(zip(numbers, places)):
        width = _WIDE * len(str(number))
        boxes = [Bbox.from_bounds(x + right - width / 2, y + up - _HIGH / 2, width, _HIGH) for right, up in _BESIDE]
        best = min(boxes, key=lambda box: sum(_common(box, other) for other in taken))
        taken.append(best)
        axes.annotate(
            str(number), ((best.x0 + best.x1) / 2, (best.y0 + best.y1) / 2), xycoords="figure pixels", ha="center", va="center",
            color=TARGETS[place % len(TARGETS)], fontsize=12,
        )  # fmt: skip


def _common(box: Bbox, other: Bbox) -> float:
    """The area that two have in common."""
    both = Bbox.intersection(box, other)
    return 0.0 if both is None else both.width * both.height
