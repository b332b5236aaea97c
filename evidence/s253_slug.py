"""S253, single layer, single gradient: one step on one layer, as far as a search says."""

from __future__ import annotations

import functools
import statistics

from common import Claim, Setting, result, show
from forgetting import ASCENTS, DATA, GOALS, at_best, once, row
from kept import Kept

CLAIM = Claim(
    id="S253",
    system="SLUG (single layer, single gradient)",
    claim="One gradient of what is forgotten and one of what stays rank layers; a step of searched length on one layer of the Pareto front brings "
    "accuracy on what is forgotten to chance and keeps the rest.",
    metric="sum of differences of accuracy (on what is forgotten, what stays, new pictures) from retraining; ascent's minus the method's",
    margin=2.0,
    setting=Setting(method="slug", baselines=("ascent",), beside=("before", "retraining"), seeds=(0, 1, 2, 3, 4), test_samples=0),
)


def main() -> None:
    kept, seeds = Kept.of(CLAIM.id), CLAIM.setting.seeds
    mine, other = at_best(kept, [f"slug @ {goal:g}" for goal in GOALS], seeds), at_best(kept, ASCENTS, seeds)
    before, after = (
        [kept(f"{name!r}, seed {seed}", functools.partial(once, name, seed, "test")) for seed in seeds] for name in ("nothing", "")
    )
    table = [row("slug", mine), row("ascent", other), row("before", before), row("retraining", after)]
    figures = {"settings": [mine[0]["method"], other[0]["method"]], "bytes of the change": [each["bytes"] for each in mine]}
    conditions = {
        "accuracy on the digit at most chance": all(each["forget"] <= 0.1 for each in mine),
        "mean accuracy on new pictures within 0.05 of retraining's": statistics.mean(b["test"] - a["test"] for a, b in zip(mine, after)) < 0.05,
    }  # fmt: skip
    show(result(CLAIM, kept, table, [b["gap"] - a["gap"] for a, b in zip(mine, other)], figures, conditions, DATA))


if __name__ == "__main__":
    main()
