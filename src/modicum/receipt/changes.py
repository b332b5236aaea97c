"""Pages of what a model was taught, made to forget or learnt: what changed each fact, what was kept for what was lost, every task at each time."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from modicum.core.errors import SettingError, quoted
from modicum.core.files import read_json
from modicum.fit.receipts import as_written
from modicum.receipt.chart import SHAPES
from modicum.receipt.pages import render
from modicum.receipt.svg import GRID, INK, SOFT, TARGETS, inline, settings, svg

# Height of a bar, and of what stands around all of them, in inches.
_BAR, _AROUND, _MOST = 0.24, 0.7, 24


def changes(directory: Path) -> Callable[[], str] | None:
    """What draws the page of a folder that ``edit``, ``forget`` or ``learn`` wrote; None for any other."""
    try:
        receipt = read_json(directory / "receipt.json")
        page = {"modicum-edited": edited, "modicum-forgotten": forgotten, "modicum-learnt": learnt}[receipt["format"]]
    except (ValueError, KeyError, TypeError):
        return None
    return lambda: page(receipt)


def edited(receipt: Mapping[str, Any]) -> str:
    """One self-contained page of a receipt of ``edit``, without scripts. Raises ``SettingError`` for one that is not as it writes it."""
    _require(receipt, "modicum-edited")
    with as_written():
        bars = {name: size[1] for name, size in receipt["changed"].items()}
        return render(
            "edited.html", receipt=receipt, charts=_charts(bars, "edited"), shares=_shares(receipt), facts=receipt.get("each", [])
        )


def forgotten(receipt: Mapping[str, Any]) -> str:
    """One self-contained page of a receipt of ``forget``, without scripts. Raises ``SettingError`` for one that is not as it writes it."""
    _require(receipt, "modicum-forgotten")
    with as_written():
        points = _points(receipt)
        layers = {name: (each["forget"], each["retain"]) for name, each in receipt.get("layers", {}).items()}
        charts = {shape: Markup(_pareto(points, layers, shape)) for shape in SHAPES} if len(points) > 1 else {}
        bars = {name: size[1] for name, size in receipt["changed"].items()}
        return render("forgotten.html", receipt=receipt, points=points, charts=charts, bars=_charts(bars, "forgotten"))


def learnt(receipt: Mapping[str, Any]) -> str:
    """One self-contained page of a receipt of ``learn``, without scripts. Raises ``SettingError`` for one that is not as it writes it."""
    _require(receipt, "modicum-learnt")
    with as_written():
        times = [*zip(("nothing", *receipt["tasks"]), receipt["matrix"], strict=True)]
        charts = {shape: Markup(_course(times, receipt["tasks"], receipt["score"], shape)) for shape in SHAPES}
        return render("learnt.html", receipt=receipt, times=times, charts=charts, same=sum(receipt["same bits"].values()))


def _require(receipt: Mapping[str, Any], format: str) -> None:
    if receipt.get("format") != format:
        raise SettingError(f"report: the receipt must be one of format {format}, has {quoted(str(receipt.get('format')))}. Name another.")


def _shares(receipt: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is told as shares, each with its interval, before and after."""
    names = {"efficacy": "facts reached", "generalisation": "paraphrases reached", "locality": "neighbours left alone"}
    found = []
    for name, told in names.items():
        after = receipt.get(name, {}).get("after", {})
        if after.get("count"):
            found.append({"name": told, **after, "before": (receipt[name].get("before") or {}).get("share")})
    return found


def _points(receipt: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Losses on what is forgotten and on what stays, at each time."""
    told = {"before": receipt["before"], "after": receipt["after"], "a model that never saw it": receipt.get("reference", {})}
    told |= {f"after {name}": each for name, each in (receipt.get("comes back") or {}).items()}
    whole = {
        name: each for name, each in told.items() if all((each.get(part) or {}).get("loss") is not None for part in ("forget", "retain"))
    }
    return {name: (each["forget"]["loss"], each["retain"]["loss"]) for name, each in whole.items()}


def _charts(bars: Mapping[str, float], name: str) -> dict[str, Markup]:
    """Bars of relative changes, the largest where there are many, in the model's order."""
    kept = set(sorted(bars, key=bars.__getitem__)[-_MOST:])
    some = {_short(weight): size for weight, size in bars.items() if weight in kept}
    return {shape: Markup(_bars(some, shape, name)) for shape in SHAPES} if some else {}


def _short(weight: str) -> str:
    short = re.sub(r"^(model\.|transformer\.)?(layers|h|blocks)\.", "", weight).removesuffix(".weight")
    return short if "." in short else weight.removesuffix(".weight")


def _bars(bars: Mapping[str, float], shape: str, name: str) -> str:
    with settings(f"{name}-bars-{shape}"):
        figure = Figure(figsize=(SHAPES[shape][0], _AROUND + _BAR * len(bars)), dpi=72, layout="constrained")
        axes = figure.add_subplot()
        axes.barh(list(bars), [100 * size for size in bars.values()], color=TARGETS[0], height=0.7)
        axes.invert_yaxis()
        axes.set_xlabel("change, in % of the weight", color=INK)
        _dressed(axes, "x")
        return inline(svg(figure, f"{name}-bars-{shape}"))


def _pareto(points: Mapping[str, tuple[float, float]], layers: Mapping[str, tuple[float, float]], shape: str) -> str:
    """Loss on what stays over loss on what is forgotten: right and low is what is wanted."""
    with settings(f"forgotten-pareto-{shape}"):
        figure = Figure(figsize=SHAPES[shape], dpi=72, layout="constrained")
        axes = figure.add_subplot()
        if layers:
            lost, kept = zip(*layers.values())
            axes.scatter(lost, kept, s=26, color=SOFT, marker="x", label="one layer's change alone")
        for place, (name, (across, up)) in enumerate(points.items()):
            marker = "o" if place < 2 else "^" if "never" in name else "s"
            axes.scatter([across], [up], s=64, color=TARGETS[place % len(TARGETS)], marker=marker, label=name)
        axes.set_xlabel("loss on what is forgotten", color=INK)
        axes.set_ylabel("loss on what stays", color=INK)
        _dressed(axes, "both")
        columns = 3 if shape == "wide" else 1
        figure.legend(loc="outside upper left", ncols=columns, frameon=False, labelcolor=INK, fontsize=10)
        return inline(svg(figure, f"forgotten-pareto-{shape}"))


def _course(times: Sequence[tuple[str, Sequence[float]]], tasks: Sequence[str], score: str, shape: str) -> str:
    """Each task's score at each time, a full mark where it was just learnt."""
    with settings(f"learnt-{shape}"):
        figure = Figure(figsize=SHAPES[shape], dpi=72, layout="constrained")
        axes = figure.add_subplot()
        lines = []
        for place in range(len(tasks)):
            colour, line = TARGETS[place % len(TARGETS)], ("-", "--", ":")[place // len(TARGETS) % 3]
            course = [scores[place] for _, scores in times]
            lines += axes.plot(course, color=colour, linestyle=line, linewidth=1.8)
            axes.scatter([place + 1], [course[place + 1]], s=52, color=colour, zorder=3)
        axes.set_xticks(range(len(times)), [name for name, _ in times], rotation=30 if len(times) > 4 else 0)
        axes.set_xlabel("after", color=INK)
        axes.set_ylabel(score, color=INK)
        _dressed(axes, "both")
        figure.legend(lines, tasks, loc="outside upper left", ncols=4 if shape == "wide" else 2, frameon=False, labelcolor=INK, fontsize=10)
        return inline(svg(figure, f"learnt-{shape}"))


def _dressed(axes: Any, grid: str) -> None:
    axes.grid(axis=grid, color=GRID, linewidth=1)
    axes.set_axisbelow(True)
    axes.tick_params(colors=SOFT, labelcolor=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
