"""Which adapter wins at which budget of trained numbers: held-out loss of a small decoder that learns another domain, with memory and seconds.

Each at the best of its rates on validation windows and three seeds; what rows of evidence have measured already is taken over
(``evidence/adapting.py``). ``python -m bench.budgets``
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from bench.common import RESULTS, ROOT, show

sys.path.insert(0, str(ROOT / "evidence"))
PICTURE = ROOT / "docs" / "adapters.svg"
SEEDS = (0, 1, 2)
MIDDLE, HIGH = (5e-3, 1e-2), (1e-2, 3e-2, 1e-1)
# Numbers that may be trained, and what trains about as many, with the rates that it is tried at; without any, with those of the evidence.
BUDGETS: dict[int, dict[str, tuple[float, ...]]] = {
    6_000: {"ia3": HIGH, "ether": HIGH},
    13_000: {"lora rank=1": MIDDLE, "vera": HIGH},
    45_000: {"lora rank=4": MIDDLE, "bone rank=8": MIDDLE},
    95_000: {"lora rank=8": (), "pissa rank=8": (), "sorsa rank=8": (), "lora rank=9": (), "pissa rank=9": (), "bone rank=16": ()},
}


def main() -> None:
    """Measure, print, and draw."""
    from adapting import RATES, adapted, before, shared

    kept, rows = shared(), []
    untrained = kept("before", before)
    for most, options in BUDGETS.items():
        found = {option: told(adapted(kept, option, SEEDS, rates or RATES)) for option, rates in options.items()}
        best = min(found, key=lambda option: found[option]["loss"])
        gaps = {option: [b - a for a, b in zip(found[best]["losses"], found[option]["losses"])] for option in found}
        for option, each in sorted(found.items(), key=lambda item: item[1]["loss"]):
            apart = 2 * statistics.stdev(gaps[option]) / len(SEEDS) ** 0.5
            note = "wins" if option == best else "level" if statistics.mean(gaps[option]) <= apart else ""
            said = f"{each['loss']:.4f}", f"{min(each['losses']):.4f} to {max(each['losses']):.4f}", f"{each['memory'] / 1e6:.1f} MB"
            rows.append((f"{most:,}", option, f"{each['trained']:,}", *said, f"{each['seconds']:.1f} s", f"{each['rate']:g}", note))
    head = ("budget", "method", "trained numbers", "held-out loss", "of three seeds", "memory to train", "seconds", "rate", "")
    note = (
        f"The decoder of the evidence, 984,192 parameters, trained on sources, learns prose; its loss before is {untrained:.4f}. Memory is 16 bytes "
        "for each trained number and what an update's forward keeps. *Level*: not two standard errors behind the one that wins, by seed."
    )
    show("Adapters by budget", head, rows, note)
    draw()


def told(found: list[dict[str, Any]]) -> dict[str, Any]:
    losses = [statistics.mean(each["loss"]) for each in found]
    middle = {name: statistics.median(each[name] for each in found) for name in ("trained", "memory", "seconds", "rate")}
    return {"losses": losses, "loss": statistics.mean(losses), **middle}


def draw(out: Path = PICTURE) -> None:
    """Loss over trained numbers, a line for each method."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot, rcParams

    grey = "#808080"
    rcParams.update({"svg.hashsalt": "modicum", "text.color": grey, "axes.labelcolor": grey, "axes.edgecolor": grey, "font.size": 10})
    rows = json.loads((RESULTS / "adapters_by_budget.json").read_text(encoding="utf-8"))["rows"]
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        lines.setdefault(row[1].split()[0], []).append((int(row[2].replace(",", "")), float(row[3])))
    figure, axes = pyplot.subplots(figsize=(7.2, 4.2))
    for place, (_, points) in enumerate(sorted(lines.items())):
        # The palette of middle tones, which can be read on light and on dark.
        axes.plot(*zip(*sorted(points)), marker="o", color=f"C{place}")
    axes.set(xscale="log", xlabel="trained numbers", ylabel="held-out loss, nats per token")
    _named(axes, {method: max(points) for method, points in sorted(lines.items())})
    axes.tick_params(which="both", colors=grey)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(out, transparent=True, metadata={"Date": None})
    pyplot.close(figure)


def _named(axes: Any, ends: dict[str, tuple[int, float]], apart: float = 11) -> None:
    """Names at the ends of lines, so many points apart where they would lie on each other."""
    axes.figure.tight_layout()
    scale = 72 / axes.figure.dpi
    places = {method: axes.transData.transform(end) * scale for method, end in ends.items()}
    put: list[tuple[float, float]] = []
    for place, method in sorted(enumerate(ends), key=lambda each: places[each[1]][1]):
        x, y = places[method]
        height = max([y, *(other + apart for beside, other in put if abs(beside - x) < 60 and other + apart > y)])
        put.append((x, height))
        axes.annotate(method, ends[method], (7, height - y - 3), textcoords="offset points", color=f"C{place}", fontsize=8)


if __name__ == "__main__":
    main()
