"""Several results of one original on one page: what each lost at its size, and what differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from modicum.fit.compared import compare
from modicum.fit.receipts import as_written
from modicum.fit.verdict import degree
from modicum.receipt.chart import SHAPES, bands, dress, wide
from modicum.receipt.pages import render
from modicum.receipt.svg import TARGETS, inline, settings, svg


def comparison(directories: Sequence[str | Path]) -> str:
    """One self-contained HTML page, without scripts, of results that ``fit`` wrote. Raises ``SettingError`` as ``compare`` does."""
    found = compare(directories)
    with as_written():
        judged = [
            (number, result) for number, result in enumerate(found["results"], 1) if result["quality"] and "mean" in result["quality"]
        ]
        alike = len({result["quality"]["metric"] for _, result in judged}) == 1
        charts = {shape: Markup(_chart(judged, shape)) for shape in SHAPES} if alike else {}
        degrees = [degree(result["quality"]) if result["quality"] else "" for result in found["results"]]
        kinds = list(dict.fromkeys(kind for result in found["results"] for kind in result["kinds"]))
        return render("comparison.html", found=found, charts=charts, degrees=degrees, kinds=kinds)


def _chart(judged: Sequence[tuple[int, Mapping[str, Any]]], shape: str) -> str:
    """Loss over size, a dot with its interval for each result, under its number."""
    quality, sizes = judged[0][1]["quality"], [result["bytes"] for _, result in judged]
    losses = [max(result["quality"]["mean"], 1e-7) for _, result in judged]
    with settings(f"compared-{shape}"):
        figure = Figure(figsize=SHAPES[shape], dpi=72, layout="constrained")
        axes = figure.add_subplot()
        axes.set(xscale="log", yscale="log", xlim=wide([min(sizes) / 1.1, max(sizes) * 1.1]), ylim=(min(losses) / 3, max(losses) * 3))
        bands(axes, quality, shape)
        for place, ((number, result), loss) in enumerate(zip(judged, losses)):
            low, high = (abs(result["quality"][name] - result["quality"]["mean"]) for name in ("low", "high"))
            colour = TARGETS[place % len(TARGETS)]
            axes.errorbar([result["bytes"]], [loss], yerr=[[min(low, 0.99 * loss)], [high]], fmt="o", color=colour, markersize=8, capsize=3)
            axes.annotate(str(number), (result["bytes"], loss), color=colour, fontsize=12, textcoords="offset points", xytext=(8, 4))
        dress(axes, figure, quality)
        return inline(svg(figure, f"compared-{shape}"))
