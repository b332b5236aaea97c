"""What a run came to as a picture of characters: the frontier as a small chart, and the plan as bars by block."""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.text import Text

from modicum.receipt.plans import VIEWS, plans

_HEIGHT, _WIDEST = 7, 64
_LABEL, _MARGIN = 26, 9  # characters of the longest name of a row, and beside the chart
_DECADES = 4
# By what a loss is called, and by bits per weight as on the page: background and ink.
_TONES = {"near-lossless": "green", "small": "blue", "large": "yellow", "broken": "red", "": "none"}
_COLOURS = (
    "#ffffff on #440f54", "#ffffff on #46327e", "#ffffff on #365c8d", "#ffffff on #1f7f86", "#10202a on #1fa187", "#10202a on #4ac16d",
    "#10202a on #a0da39", "#10202a on #fde725",
)  # fmt: skip
_KEPT = "#24292f on #b8bec6"
_MARKS = {True: ("·", "•", "◆", "│", "─", "└"), False: (".", "o", "*", "|", "-", "+")}


def picture(receipt: Mapping[str, Any], width: int, unicode: bool = True) -> list[Text]:
    """Lines of at most ``width`` characters; ``unicode``: whether all of its characters can be written."""
    shown, width = plans(receipt), max(width, 20)
    chart = list(_chart(shown, width, *_MARKS[unicode])) if _drawable(shown) else []
    bars = list(_bars(shown, width, unicode))
    return [*chart, *([Text("")] if chart and bars else []), *bars]


# The frontier


def _drawable(shown: Mapping[str, Any]) -> bool:
    points, losses = shown["points"], [point["lost"] for point in shown["points"]]
    return len(points) > 1 and points[0]["bytes"] < points[-1]["bytes"] and None not in losses and max(losses) > 0


def _chart(shown: Mapping[str, Any], width: int, dot: str, plan: str, own: str, side: str, floor: str, corner: str) -> Iterator[Text]:
    """Loss over size, both in logarithms."""
    points, columns = shown["points"], min(width - _MARGIN, _WIDEST)
    top = max(point["lost"] for point in points)
    bottom = max(min(point["lost"] for point in points if point["lost"] > 0), top * 10.0**-_DECADES)
    row_of = lambda lost: round((_HEIGHT - 1) * math.log(top / min(max(lost, bottom), top)) / max(math.log(top / bottom), 1e-9))
    at = [_along(points, point["bytes"], columns) for point in points]
    rows = [[(" ", "")] * columns for _ in range(_HEIGHT)]
    for column in range(columns):
        rows[row_of(_between(points, at, column))][column] = (dot, "dim")
    for point, place in zip(points, at):
        rows[row_of(point["lost"])][place] = (plan, _TONES[point["degree"]])
    here = points[shown["chosen"]]
    rows[row_of(here["lost"])][at[shown["chosen"]]] = (own, f"bold {_TONES[here['degree']]}")
    yield Text(f"loss over size: {own} this result, {plan} other plans, as forecast and this one turned out")
    for number, row in enumerate(rows):
        label = f"{top * (bottom / top) ** (number / (_HEIGHT - 1)):.2g}" if number in (0, _HEIGHT // 2, _HEIGHT - 1) else ""
        yield Text.assemble(f"{label:>{_MARGIN - 2}} {side}", *row)
    yield Text(f"{'':>{_MARGIN - 2}} {corner}{floor * columns}")
    first, last = points[0]["size"], points[-1]["size"]
    yield Text(f"{'':>{_MARGIN}}{first}{last:>{max(columns - len(first), len(last) + 1)}}"[:width])


def _along(points: Sequence[Mapping[str, Any]], size: float, columns: int) -> int:
    low, high = points[0]["bytes"], points[-1]["bytes"]
    return round((columns - 1) * math.log(size / low) / math.log(high / low))


def _between(points: Sequence[Mapping[str, Any]], at: Sequence[int], column: int) -> float:
    """The loss at a column, between the plans to both sides in the logarithm."""
    right = min(max(bisect(at, column), 1), len(at) - 1)
    (left_at, left), (right_at, lost) = ((at[place], max(points[place]["lost"], 1e-12)) for place in (right - 1, right))
    share = (column - left_at) / max(right_at - left_at, 1)
    return math.exp((1 - share) * math.log(left) + share * math.log(lost))


# The plan


def _bars(shown: Mapping[str, Any], width: int, unicode: bool) -> Iterator[Text]:
    """Bits per weight of every part, a line for those that are the same in all blocks; in as many parts as the width asks for."""
    rows = [(_name(row["name"]), [_cell(cell, shown["chosen"]) for cell in row["cells"]]) for row in shown["rows"]]
    rows = [(name, cells) for name, cells in rows if any(cell is not None for cell in cells)]
    count = max((len(cells) for _, cells in rows), default=0)
    label = min(max((len(name) for name, _ in rows), default=0), _LABEL, width // 2)
    room = width - label - 1
    size = 3 if 3 * count <= room else 1
    for start in range(0, count, room // size):
        stop = min(start + room // size, count)
        part = "" if stop - start == count else f", blocks {start} to {stop - 1}"
        yield Text(f"bits per weight{part} (= as it was, + more than 9)")
        yield from (_line(name, cells[start:stop], label, size) for name, cells in rows if cells[start:stop])


def _line(name: str, cells: Sequence[tuple[str, str] | None], label: int, size: int) -> Text:
    short = name if len(name) <= label else f"{name[: label - 1]}~"
    shown = [(" " * size, "") if cell is None else (cell[0].center(size), cell[1]) for cell in cells]
    return Text.assemble(f"{short:<{label}} ", *shown)


def _name(row: str) -> str:
    """A row without what all blocks' names begin with."""
    return row.partition("*")[2].lstrip(".") or row


def _cell(cell: Mapping[str, Any] | None, point: int) -> tuple[str, str] | None:
    """A character, and its style; of what has no weights nothing."""
    if cell is None:
        return None
    state = [state for state in cell["states"] if state["at"] <= point][-1]
    if state["bits"] is None:
        return None
    if state["short"] == "–":
        return "-", "dim"
    if state["short"] == "keep":
        return "=", _KEPT
    return "+" if state["bits"] >= 9.5 else f"{state['bits']:.0f}", _COLOURS[bisect(VIEWS["bits"], state["bits"])]
