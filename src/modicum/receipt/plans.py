"""The plans of a receipt as its page shows them: what each size is expected to lose and spent on, and what every part of the model gets there."""

from __future__ import annotations

import re
from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modicum.core.budget import readable
from modicum.core.option import KEEP
from modicum.fit.account import DROPPED
from modicum.fit.verdict import really
from modicum.judge.degree import degree
from modicum.table.findings import DEPTH, GONE

ITEM_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
# Where the colours of the map change: bits per weight, bits beyond the reference, and the share of a plan's forecast loss.
VIEWS = {
    "bits": (1.75, 2.75, 3.75, 4.75, 5.75, 6.75, 8.75), "beyond": (0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5),
    "loss": (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2),
}  # fmt: skip
# Reasons of layers that stand in a site all the same, and of what is too small to be looked at.
_PASSED = ("kept by request", "kept by plan", "vector")
_REST = "names, norms and biases"
_BLOCK = re.compile(r"(^|\.)(\d+)(\.|$)")


@dataclass(frozen=True)
class _Part:
    """A site, or a weight that no choice is for: its size as it was, and where it changes from plan to plan."""

    name: str
    weights: float
    before: int
    runs: list[list[Any]]

    def at(self, point: int) -> list[Any]:
        """``[from, option, bytes, harm, beyond]`` of a plan."""
        return self.runs[bisect([run[0] for run in self.runs], point) - 1]


def plans(receipt: Mapping[str, Any]) -> dict[str, Any]:
    """What a page shows of the plans in a receipt, as a JSON value: its own plan alone where nothing was chosen from.

    ``points``: each plan's size, loss and what it is ``spent`` on; ``chosen``: the receipt's own. ``rows`` of the map, with ``cells`` by block, each
    with its ``states`` from point to point.
    """
    frontier = receipt.get("frontier") or {}
    points = frontier.get("points") or [{"bytes": receipt["bytes"]["actual"], "harm": receipt.get("predicted_harm")}]
    parts = list(_parts(receipt, frontier))
    chosen = frontier.get("chosen", 0)
    return {
        "points": [_point(receipt, parts, place, point, place == chosen) for place, point in enumerate(points)],
        "chosen": chosen, "views": VIEWS, "rows": _rows(parts),
    }  # fmt: skip


def _parts(receipt: Mapping[str, Any], frontier: Mapping[str, Any]) -> Iterator[_Part]:
    """Sites in call order, then what no choice is for."""
    along, options = frontier.get("sites", {}), frontier.get("options", [])
    rows = {row["site"]: row for row in receipt["sites"]}
    for name in dict.fromkeys([*along, *rows]):
        row = rows.get(name, {})
        if name in along:
            runs = [[run[0], options[run[1]], *run[2:]] for run in along[name]]
        else:
            runs = [[0, row["option"], row["bytes"], row["harm"], row.get("beyond")]]
        if not row and all(run[1] == KEEP for run in runs):
            continue  # structure that no plan changes
        yield _Part(name, row.get("weights", 0), row.get("original_bytes", 0), runs)
    item = ITEM_BYTES.get(receipt["model"]["dtype"], 4)
    for row in receipt["coverage"]["untreated"]:
        if row["reason"] not in _PASSED and row["bytes"]:
            yield _Part(row["unit"], row["bytes"] / item, row["bytes"], [[0, f"not treated ({row['reason']})", row["bytes"], None, None]])


# Plans


def _point(receipt: Mapping[str, Any], parts: Sequence[_Part], place: int, point: Mapping[str, Any], chosen: bool) -> dict[str, Any]:
    """A plan's size, what it is expected to lose, and what it is spent on; of the receipt's own what it really has and loses."""
    quality, forecast = receipt["quality"] or {}, receipt.get("predicted_harm")
    size = receipt["bytes"]["actual"] if chosen else point["bytes"]
    lost = quality.get("mean") if chosen else _expected(point["harm"], forecast, quality)
    told = degree({"metric": quality["metric"], "mean": lost}) if quality and lost is not None else ""
    if chosen and quality:
        told = degree(quality)
    return {
        "bytes": size, "size": readable(size), "bits": 8 * size / receipt["model"]["parameters"], "lost": lost, "forecast": point["harm"],
        "degree": told, "spent": _spent([(part, part.at(place)) for part in parts], size),
    }  # fmt: skip


def _expected(harm: float | None, forecast: float | None, quality: Mapping[str, Any]) -> float | None:
    """A forecast scaled by what this result's really lost."""
    if harm is None or not forecast or "mean" not in quality:
        return harm
    return really(harm, forecast, quality["mean"])


def _spent(found: Sequence[tuple[_Part, list[Any]]], size: int) -> list[dict[str, Any]]:
    """What each option takes: how many sites, bytes, bits per weight, and those beyond the reference of the weights that tell; most bytes first."""
    groups: dict[str, list[tuple[_Part, list[Any]]]] = defaultdict(list)
    for part, run in found:
        if part.weights:
            groups[run[1]].append((part, run))
    rows = [_of_option(option, members) for option, members in groups.items()]
    rest = size - sum(row["bytes"] for row in rows)
    more = [{"option": _REST, "sites": None, "bytes": rest, "bits": None, "beyond": None}] if rest > 0 else []
    return sorted(rows, key=lambda row: -row["bytes"]) + more


def _of_option(option: str, members: Sequence[tuple[_Part, list[Any]]]) -> dict[str, Any]:
    weights, size = sum(part.weights for part, _ in members), sum(run[2] for _, run in members)
    told = [(part.weights, run[4]) for part, run in members if run[4] is not None]
    beyond = sum(count * more for count, more in told) / sum(count for count, _ in told) if told else None
    return {"option": option, "sites": len(members), "bytes": size, "bits": 8 * size / weights, "beyond": beyond}


# The map


def _rows(parts: Sequence[_Part]) -> list[dict[str, Any]]:
    """Rows of the map: the same part of all blocks, and what lies outside them; experts of one stack are one cell."""
    found: dict[str, dict[str, list[_Part]]] = defaultdict(lambda: defaultdict(list))
    for part in parts:
        row, block = _placed(part.name)
        found[row][block].append(part)
    blocks = sorted({block for cells in found.values() for block in cells} - {""}, key=int)
    rows = sorted(found.items(), key=lambda item: "" in item[1])  # what lies outside comes last
    return [_row(name, cells, [""] if "" in cells else blocks) for name, cells in rows]


def _row(name: str, found: Mapping[str, Sequence[_Part]], blocks: Sequence[str]) -> dict[str, Any]:
    """A row with a cell for every block, None where a block has no such part."""
    cells = [{"block": block, "states": _states(found[block])} if block in found else None for block in blocks]
    return {"name": "blocks left out" if name == DEPTH else name, "inside": blocks != [""], "cells": cells}


def _placed(name: str) -> tuple[str, str]:
    """The row and the block of a part: the block is the first number in its name."""
    bare = re.sub(r"\[\d+\]$", "", name).removesuffix(".weight")
    block = _BLOCK.search(bare)
    return (bare, "") if block is None else (f"{bare[: block.start(2)]}*{bare[block.end(2) :]}", block[2])


def _states(members: Sequence[_Part]) -> list[dict[str, Any]]:
    """What a cell shows from each point on at which something in it changes."""
    starts = sorted({run[0] for part in members for run in part.runs})
    return [{"at": start, **_state(members, [part.at(start) for part in members])} for start in starts]


def _state(members: Sequence[_Part], runs: Sequence[list[Any]]) -> dict[str, Any]:
    options, weights = Counter(run[1] for run in runs), sum(part.weights for part in members)
    size, told = sum(run[2] for run in runs), [(part.weights, run[4]) for part, run in zip(members, runs) if run[4] is not None]
    said = "; ".join(f"{count} × {option}" if len(members) > 1 else option for option, count in options.most_common())
    counted = sum(count for count, _ in told)
    return {
        "said": said, "bytes": size if weights else None, "bits": 8 * size / weights if weights else None,
        "beyond": sum(count * more for count, more in told) / counted if counted else None,
        "harm": sum(run[3] or 0.0 for run in runs), "short": _short(members[0].name, options) if len(options) == 1 else "",
    }  # fmt: skip


def _short(name: str, options: Counter[str]) -> str:
    """What a cell says where bits do not tell: of a cut what remains, of what is gone nothing."""
    (option,) = options
    if option in (GONE, DROPPED):
        return "–"
    if option == KEEP or option.startswith("not treated"):
        return KEEP
    if name == DEPTH and (count := re.search(r"count=(\d+)", option)):
        return f"−{count[1]}"
    kept = re.search(r"\bkeep=([\d.]+)", option)
    return f"{100 * float(kept[1]):.0f}%" if kept and ":" in name else ""
