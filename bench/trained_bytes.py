"""Quality against bytes of one net: every method that trains it small, and the dense one compressed afterwards, with equal updates.

A convolutional net on digits; a method's first dial is turned to each budget, to the byte. What is compressed afterwards is the dense net of the same
updates, by ``fit``. What was stopped goes on where it was when the same command runs again; ``python -m bench.trained_bytes METHOD ...`` measures
these alone.
"""

from __future__ import annotations

import functools
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.common import RESULTS, ROOT, show

sys.path.insert(0, str(ROOT / "evidence"))
TABLE = RESULTS / "quality_by_trained_bytes.json"
PICTURE = ROOT / "docs" / "trained_bytes.svg"
STEPS, SEEDS = 250, (0, 1)
# Of the dense net's bytes.
SHARES = (0.3, 0.1)
AFTER = "fit of the dense net"
KINDS = {
    "masks chosen once": ("random layers=erk", "snip", "grasp", "synflow", "sbp_sr", "freezenet"),
    "masks that move": ("set every=20", "rigl every=20", "gradual", "activating", "dsl every=20", "tickets", "smp", "pst"),
    "whole rows": ("wgsef", "lapp"),
    "patterns of n of 16": ("sr_ste m=16", "gradient_flow m=16"),
    "grids": ("lsq", "bitnet inputs_in=float", "adaptive_precision every=25"),
    "factors": ("low_rank", "sltrain", "phm n=4", "phm n=8", "mpo"),
    "shared numbers": ("stable_rps", "shapeshifter"),
}  # fmt: skip


def main(asked: Sequence[str] = ()) -> None:
    """Measure those that are ``asked`` for or all, print, and draw; rows of others stay."""
    from small import shared

    kept, rows = shared(), list[Sequence[str]]()
    known = json.loads(TABLE.read_text(encoding="utf-8"))["rows"] if asked else []
    for method in [*(each for methods in KINDS.values() for each in methods), AFTER]:
        if asked and method not in asked:
            rows += [row for row in known if row[0] == method]
            continue
        for share in (*SHARES, 1.0) if method == AFTER else SHARES:
            steps = [(f"bytes {method} {share}, seed {seed}", functools.partial(once, method, share, seed)) for seed in SEEDS]
            rows.append((method, f"{100 * share:g} %", *_told([kept(*step) for step in steps])))
            print(*rows[-1], flush=True)
    head = ("method", "budget", "bytes written", "test loss", "of two seeds", "accuracy")
    note = (
        f"A convolutional net of 14,858 parameters on scikit-learn's digits, {STEPS} updates each; bytes of the weight file in our container. "
        f"*{AFTER}*: the dense net of as many updates, compressed to the budget. *at least*: the method reaches nothing smaller. Without a row are "
        "`spdf`, which ends dense, and `widenet` and `layer_tickets`, which need layers or blocks that are alike."
    )
    show("Quality by trained bytes", head, rows, note)
    draw()


def _told(seeds: list[dict[str, Any]]) -> tuple[str, str, str, str]:
    """Bytes, loss, its spread and accuracy over seeds; the least that can be had where a budget is below it."""
    if "least" in seeds[0]:
        return f"at least {seeds[0]['least']}", "", "", ""
    mean: Callable[[str], float] = lambda name: statistics.mean(each[name] for each in seeds)
    losses = [each["loss"] for each in seeds]
    return f"{mean('bytes'):,.0f}", f"{mean('loss'):.3f}", f"{min(losses):.3f} to {max(losses):.3f}", f"{100 * mean('accuracy'):.1f} %"


def once(method: str, share: float, seed: int) -> dict[str, Any]:
    """Loss, accuracy and bytes; the least size where the budget is below what the method reaches."""
    import torch

    from modicum.core.budget import Budget
    from modicum.core.errors import BudgetError
    from modicum.train.accounts import within
    from modicum.train.written import account
    from scenes import digits
    from small import fitted

    x, _ = digits.pictures("train")
    torch.manual_seed(seed)
    model = digits.Conv().eval()
    known = account(model, "modicum", (x[:8],))
    most = int(share * known.forms({}).bytes)
    try:
        if method == AFTER:
            return _fitted(model, most, seed, share)
        made = within(method, Budget.of(size=most), known)
    except BudgetError as error:
        return {"least": str(error).partition("at least ")[2].partition(" and ")[0]}
    told = fitted(model, str(made), seed, STEPS)
    return {"loss": told["loss"], "accuracy": told["accuracy"], "bytes": known.of(made).bytes}


def _fitted(model: Any, most: int, seed: int, share: float) -> dict[str, float]:
    """The dense net, trained, then compressed."""
    import modicum
    from scenes import digits
    from scenes.training import classes, drawn
    from scenes.training import fitted as learnt
    from small import worth

    x, y = digits.pictures("train")
    learnt(model, ((x[places], y[places]) for places in drawn(len(x), 64, seed)), classes, 1e-2, STEPS)
    if share == 1:
        return {**{name: worth(model)[name] for name in ("loss", "accuracy")}, "bytes": most}
    made = modicum.fit(model, size=most, data=[(x[at : at + 50],) for at in range(0, 500, 50)], target="modicum", allow_fallback=True)
    return {**{name: worth(made.model)[name] for name in ("loss", "accuracy")}, "bytes": made.receipt["bytes"]["actual"]}


def draw(out: Path = PICTURE) -> None:
    """Loss over bytes: each method a point at each budget, in the colour of its kind; those are named that none beats with as few bytes."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot, rcParams

    grey = "#808080"
    rcParams.update({"svg.hashsalt": "modicum", "text.color": grey, "axes.labelcolor": grey, "axes.edgecolor": grey, "font.size": 11})
    rows = json.loads(TABLE.read_text(encoding="utf-8"))["rows"]
    points = {(row[0], row[1]): (float(row[2].replace(",", "")), float(row[3])) for row in rows if row[3]}
    figure, axes = pyplot.subplots(figsize=(5.8, 4.6))
    for place, (kind, methods) in enumerate({**KINDS, AFTER: (AFTER,)}.items()):
        mine = sorted(point for (method, _), point in points.items() if method in methods)
        axes.plot(*zip(*mine), marker="s" if kind == AFTER else "o", ls="-" if kind == AFTER else "", ms=5, color=f"C{place}", label=kind)
    small = {method: point for method, point in points.items() if method[0] != AFTER}
    for (method, _), (size, loss) in small.items():
        if not any(other[0] <= 1.05 * size and other[1] <= loss for other in small.values() if other != (size, loss)):
            axes.annotate(method.split()[0], (size, loss), (0, -12), textcoords="offset points", fontsize=9, ha="center")
    axes.set(xscale="log", yscale="log", xlim=(4600, 70_000), xlabel="kilobytes of the file", ylabel="test loss, nats")
    axes.set_xticks([], minor=True)
    axes.set_xticks([6000, 10_000, 18_000, 30_000, 60_000], ["6", "10", "18", "30", "60"])
    axes.set_yticks([], minor=True)
    axes.set_yticks([0.05, 0.1, 0.2, 0.5, 1, 2], ["0.05", "0.1", "0.2", "0.5", "1", "2"])
    axes.legend(frameon=False, fontsize=9.5, loc="upper right", handletextpad=0.3)
    axes.tick_params(which="both", colors=grey)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(out, transparent=True, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main(sys.argv[1:])
