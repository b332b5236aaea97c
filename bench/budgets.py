"""Which adapter wins at which budget of trained numbers: held-out loss of a small decoder that learns another domain, with memory and seconds.

Three seeds each, at the best of its rates on validation windows where a row of evidence has measured that (``evidence/adapting.py``), else at its own
rate. ``python -m bench.budgets``; ``known`` draws what is measured.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.common import RESULTS, ROOT, show

sys.path.insert(0, str(ROOT / "evidence"))
PICTURE = ROOT / "docs" / "adapters.svg"
KEPT = RESULTS / "kept" / "budgets.json"
SEEDS = (0, 1, 2)
# What no row of evidence trains beside this decoder.
OTHERS = (
    "ia3", "vera", "bone rank=8", "bone rank=4", "dora rank=8", "rslora rank=8", "adalora rank=8", "lora_ga rank=8", "flora rank=8", "ether_plus",
    "topk keep=0.01", "fish keep=0.01", "sara keep=0.01", "ramt", "subspace size=1000", "subspace size=4000",
)  # fmt: skip
BUDGETS = (1_500, 6_000, 13_000, 21_000, 50_000, 95_000, 170_000, 1_000_000)
HEAD = ("budget", "method", "trained numbers", "held-out loss", "of the seeds", "memory to train", "seconds", "rate", "")


def main() -> None:
    """Measure what is not known, print, and draw."""
    found = {**others(measure="known" not in sys.argv), **dict(evidence())}
    rows = []
    for least, most in zip((0, *BUDGETS), BUDGETS):
        within = sorted((each["loss"], option) for option, each in found.items() if least < each["trained"] <= most)
        for _, option in within:
            each, best = found[option], found[within[0][1]]
            note = "wins" if each is best else "level" if each["lowest"] <= best["highest"] else ""
            said = f"{each['loss']:.4f}", f"{each['lowest']:.4f} to {each['highest']:.4f}", f"{each['memory'] / 1e6:.1f} MB"
            rows.append((f"{most:,}", option, f"{each['trained']:,.0f}", *said, f"{each['seconds']:.1f} s", f"{each['rate']:g}", note))
    note = (
        "The decoder of the evidence, 984,192 parameters, trained on sources, learns prose in 60 updates; its loss before is 4.2343. A method stands "
        "at the smallest budget that it fits, at the best of two rates or more on validation windows or at its own. Memory is 16 bytes for each "
        "trained number and what an update's forward keeps. *Level*: its best seed is no worse than the worst of the one that wins. A pattern "
        "before a method says of which parameters."
    )
    show("Adapters by budget", HEAD, rows, note)
    draw(rows)


def evidence() -> Iterator[tuple[str, dict[str, Any]]]:
    """What rows of evidence tell of this decoder on prose."""
    from adapting import data

    scene = data(0).partition(";")[0]
    for row in json.loads((ROOT / "evidence" / "results.json").read_text(encoding="utf-8")):
        if row.get("data", "").startswith(scene):
            for each in (row["measured"], row["baseline"], *row["others"]):
                option = each["option"].split(": ", 1)[-1] if row["id"] == "S023" else each["option"]
                if "seconds" in each and each["trained"][0] and "," not in option and "four bits" not in each["option"]:
                    yield option, told(each["loss"], each["trained"], each["bytes kept to train"], each["seconds"], each["rate"])


def others(measure: bool) -> dict[str, dict[str, Any]]:
    """What else is measured, each at its own rate."""
    from adapting import once
    from modicum.core.method import find

    known: dict[str, dict[str, Any]] = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    for option in OTHERS:
        if measure and option not in known:
            rate = find(option.split()[0]).rate
            each = [once(option, rate, seed) for seed in SEEDS]
            parts = ([one[name] for one in each] for name in ("trained", "memory", "seconds"))
            known[option] = told([statistics.mean(one["loss"]) for one in each], *parts, [rate])
            KEPT.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
            print(option, known[option], flush=True)
    return known


def told(losses: Sequence[float], trained: Sequence[int], memory: Sequence[int], seconds: Sequence[float], rate: Sequence[float]) -> dict:
    """One method over its seeds."""
    middle = {"trained": trained, "memory": memory, "seconds": seconds, "rate": rate}
    mean = {"loss": statistics.mean(losses), "lowest": min(losses), "highest": max(losses)}
    return mean | {name: statistics.median(values) for name, values in middle.items()}


def draw(rows: Sequence[Sequence[str]], out: Path = PICTURE) -> None:
    """Loss over trained numbers: a dot for each method, joined where one has several, and coloured where it wins a budget."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot, rcParams

    grey = "#808080"
    rcParams.update({"svg.hashsalt": "modicum", "text.color": grey, "axes.labelcolor": grey, "axes.edgecolor": grey, "font.size": 10})
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        lines.setdefault(_family(row[1]), []).append((float(row[2].replace(",", "")), float(row[3])))
    winning = list(dict.fromkeys(_family(row[1]) for row in rows if row[-1] == "wins"))
    # The palette of middle tones, which can be read on light and on dark.
    colours = {method: f"C{winning.index(method)}" if method in winning else grey for method in lines}
    figure, axes = pyplot.subplots(figsize=(6.4, 5.8))
    for method, points in lines.items():
        axes.plot(*zip(*sorted(points)), marker="o", markersize=4, linewidth=1.2, color=colours[method])
    axes.set(xscale="log", xlabel="trained numbers", ylabel="held-out loss, nats per token")
    axes.set_xlim(right=4e6)
    _named(axes, {method: max(points) for method, points in lines.items()}, colours)
    axes.tick_params(which="both", colors=grey)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(out, transparent=True, metadata={"Date": None})
    pyplot.close(figure)


def _family(option: str) -> str:
    """An option without its settings."""
    pattern, _, method = option.rpartition(": ")
    words = [word for word in method.split() if "=" not in word]
    return " ".join(([f"{pattern}:"] if pattern else []) + words)


def _named(axes: Any, ends: dict[str, tuple[float, float]], colours: dict[str, str], apart: float = 11) -> None:
    """Names at the ends of lines, before one that lies on a coloured line; apart from each other, and led back to their ends."""
    axes.figure.tight_layout()
    scale = 72 / axes.figure.dpi
    places = {method: axes.transData.transform(end) * scale for method, end in ends.items()}
    lines = [line.get_xydata() for line in axes.lines if line.get_color() != "#808080"]
    bright = [tuple(axes.transData.transform(point) * scale) for line in lines for point in line]
    before = {method for method in ends if colours[method] == "#808080" and any(math.dist(places[method], at) < 4 for at in bright)}
    wide = {method: 5.2 * len(method) + 8 for method in ends}
    lefts = {method: place[0] - 6 - wide[method] if method in before else place[0] + 6 for method, place in places.items()}
    heights = {method: float(place[1]) - 3 for method, place in places.items()}
    for _ in range(500):
        for one, two in itertools.combinations(sorted(heights, key=lambda each: heights[each]), 2):
            if (
                lefts[one] < lefts[two] + wide[two]
                and lefts[two] < lefts[one] + wide[one]
                and (near := apart - heights[two] + heights[one]) > 0
            ):
                heights[one], heights[two] = heights[one] - near / 2, heights[two] + near / 2
    for method, (_, y) in places.items():
        moved = heights[method] - y
        led = {"arrowstyle": "-", "linewidth": 0.5, "color": colours[method], "shrinkA": 1, "shrinkB": 2} if abs(moved + 3) > 4 else None
        side = {"ha": "right"} if method in before else {}
        offset = (-6 if method in before else 6) * (2 if led else 1)
        axes.annotate(
            method, ends[method], (offset, moved), textcoords="offset points", color=colours[method], fontsize=9, arrowprops=led, **side
        )


if __name__ == "__main__":
    main()
