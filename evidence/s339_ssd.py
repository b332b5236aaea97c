"""S339, selective synaptic dampening: a digit is forgotten without training, and the rest stays."""

from __future__ import annotations

import functools
import statistics

from common import Claim, Setting, result, show
from forgetting import ASCENTS, DATA, at_best, once, row
from kept import Kept

CLAIM = Claim(
    id="S339",
    system="SSD (selective synaptic dampening)",
    claim="Weights whose importance to the forget set is above alpha times that to all data are dampened; accuracy on what is forgotten falls to "
    "that of retraining, that on what stays holds, without training.",
    metric="sum of differences of accuracy (on what is forgotten, what stays, new pictures) from retraining; ascent's minus the method's",
    margin=2.0,
    setting=Setting(method="ssd", baselines=("ascent",), beside=("before", "retraining"), seeds=(0, 1, 2, 3, 4), test_samples=0),
)
GRID = [f"ssd alpha={alpha} dampen={dampen}" for alpha in (1.0, 2.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0) for dampen in (0.0, 0.1, 0.5, 1.0)]


def main() -> None:
    kept, seeds = Kept.of(CLAIM.id), CLAIM.setting.seeds
    mine, other = at_best(kept, GRID, seeds, relapse=True), at_best(kept, ASCENTS, seeds)
    before, after = (
        [kept(f"{name!r}, seed {seed}", functools.partial(once, name, seed, "test")) for seed in seeds] for name in ("nothing", "")
    )
    table = [row("ssd", mine), row("ascent", other), row("before", before), row("retraining", after)]
    back = lambda what: [each["comes back"][what]["forget"]["accuracy"] for each in mine]
    figures = {
        "settings": [mine[0]["method"], other[0]["method"]], "accuracy on the digit after a fit to 4 bits": back("4 bits"),
        "accuracy on the digit after 50 updates on the others": back("50 updates"),
        "attack's area, and retraining's": [[each["attack"] for each in mine], [each["attack"] for each in after]],
    }  # fmt: skip
    conditions = {
        "accuracy on the digit within 0.05 of retraining's": all(abs(a["forget"] - b["forget"]) < 0.05 for a, b in zip(mine, after)),
        "mean accuracy on new pictures within 0.05 of retraining's": statistics.mean(b["test"] - a["test"] for a, b in zip(mine, after)) < 0.05,
    }  # fmt: skip
    show(result(CLAIM, kept, table, [b["gap"] - a["gap"] for a, b in zip(mine, other)], figures, conditions, DATA))


if __name__ == "__main__":
    main()
