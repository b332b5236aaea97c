"""A receipt as one page: how much was lost, what each size costs, what every part got, and what was verified."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from markupsafe import Markup

from modicum.fit.receipts import as_written
from modicum.judge.degree import BROKEN, DEGREES, ERRORS, degree
from modicum.receipt.chart import SHAPES, Chart, chart
from modicum.receipt.command import command
from modicum.receipt.depth import depth
from modicum.receipt.healing import curve
from modicum.receipt.pages import render
from modicum.receipt.plans import VIEWS, plans

_TITLES = {"bits": "bits per weight", "beyond": "bits beyond the reference", "loss": "share of the forecast loss"}
# Where the ring around the shown plan is drawn, and its size.
_RING = '<circle class="here" cx="{:g}" cy="{:g}" r="8"/></svg>'


def report(receipt: Mapping[str, Any]) -> str:
    """One self-contained HTML page for a receipt: it asks for no other file; the same receipt gives the same page.

    Raises ``SettingError`` for a receipt that is not as ``fit`` writes it.
    """
    with as_written():  # drawing and templates
        shown, quality = plans(receipt), receipt["quality"] or {}
        charts = _charts(shown, quality)
        shown["places"] = {shape: drawn.places for shape, drawn in charts.items()}
        blocks = {cell["block"] for cell in _cells(shown)} - {""}
        code, hash = _script()
        return render(
            "report.html", **{**receipt, "plans": shown, "shown": shown, "own": shown["points"][shown["chosen"]]},
            charts={shape: _ringed(drawn, shown["chosen"]) for shape, drawn in charts.items()}, degree=degree(quality) if quality else "",
            degrees=_degrees(quality), unit=quality.get("metric", ""), forecast_of="KL" in quality.get("metric", ""), views=_views(shown),
            blocks=sorted(blocks, key=int), prefix=_prefix(shown), command=command(receipt), script=Markup(code), hash=hash,
            depth={shape: Markup(drawn) for shape, drawn in depth(receipt.get("by_block") or {}).items()},
            healed={shape: Markup(drawn) for shape, drawn in curve(receipt.get("healing") or {"losses": []}).items()},
            structure=any(row["kind"] in ("cut", "span") for row in receipt["sites"]),
        )  # fmt: skip


def _cells(shown: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [cell for row in shown["rows"] for cell in row["cells"] if cell is not None]


@cache
def _script() -> tuple[str, str]:
    """What moves the slider, and the hash by which the page lets nothing else run."""
    code = Path(__file__).with_name("report.js").read_text(encoding="utf-8")
    return code, base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()


def _charts(shown: Mapping[str, Any], quality: Mapping[str, Any]) -> dict[str, Chart]:
    told = all(point["lost"] is not None and point["forecast"] is not None for point in shown["points"])
    several = len(shown["points"]) > 1 and any(point["lost"] for point in shown["points"] if told)
    return {shape: chart(shown, quality, shape) for shape in SHAPES} if several and quality else {}


def _ringed(drawn: Chart, place: int) -> Markup:
    before, _, after = drawn.svg.rpartition("</svg>")
    return Markup(before + _RING.format(*drawn.places[place]) + after)


def _degrees(quality: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names of a loss and their limits; the last has none."""
    limits = DEGREES if "KL" in quality.get("metric", "") else ERRORS
    return [*((name, f"{most:g}") for most, name in limits), (BROKEN, "")]


def _views(shown: Mapping[str, Any]) -> dict[str, Any]:
    """What the map can be coloured by, with its steps; what no state tells is left out."""
    states = [state for cell in _cells(shown) for state in cell["states"]]
    told = {"bits": True, "beyond": any(state["beyond"] is not None for state in states), "loss": any(state["harm"] for state in states)}
    return {name: {"title": _TITLES[name], "steps": _steps(name)} for name in VIEWS if told[name]}


def _steps(view: str) -> list[str]:
    limits = VIEWS[view]
    if view == "bits":
        return ["1", "2", "3", "4", "5", "6", "8", "9 to 16"]
    said = [f"{100 * limit:g} %" if view == "loss" else f"{limit:g}" for limit in limits]
    return [f"below {said[0]}", *(f"{low} to {high}" for low, high in pairwise(said)), f"from {said[-1]}"]


def _prefix(shown: Mapping[str, Any]) -> str:
    """What the names of all rows of blocks begin with, up to the block's place."""
    named = {row["name"][: row["name"].index("*") + 1] for row in shown["rows"] if "*" in row["name"]}
    return named.pop() if len(named) == 1 else ""
