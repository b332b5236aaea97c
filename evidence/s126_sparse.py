"""S126, sparse unlearning: fine-tuning comes closer to retraining where weights were pruned first; beside it, where they are driven to zero."""

from __future__ import annotations

import functools

from common import Claim, Setting, result, show
from forgetting import DATA, at_best, once, row
from kept import Kept

CLAIM = Claim(
    id="S126",
    system="Prune first, then unlearn (sparsity-aware unlearning)",
    claim="Fine-tuning on what stays comes closer to retraining after pruning than on the dense model.",
    metric="sum of differences of accuracy (on what is forgotten, what stays, new pictures) from retraining; dense minus pruned",
    margin=2.0,
    setting=Setting(
        method="pruned first", baselines=("dense",), beside=("L1 penalty", "before", "retraining"), seeds=(0, 1, 2, 3, 4), test_samples=0
    ),
)
# Few updates, as an unlearning must be cheaper than retraining, at the same rates for all.
RATES, STEPS = (1e-3, 3e-3, 1e-2), 200
GRIDS = {
    "pruned first": [f"sparse steps={STEPS} rate={rate:g} penalty=0 keep={keep}" for rate in RATES for keep in (0.5, 0.3, 0.1)],
    "dense": [f"sparse steps={STEPS} rate={rate:g} penalty=0" for rate in RATES],
    "L1 penalty": [f"sparse steps={STEPS} rate={rate:g} penalty={penalty:g}" for rate in RATES for penalty in (1e-5, 1e-4, 1e-3)],
}


def main() -> None:
    kept, seeds = Kept.of(CLAIM.id), CLAIM.setting.seeds
    found = {name: at_best(kept, grid, seeds) for name, grid in GRIDS.items()}
    for name, method in (("before", "nothing"), ("retraining", "")):
        found[name] = [kept(f"{method!r}, seed {seed}", functools.partial(once, method, seed, "test")) for seed in seeds]
    gains = lambda name: [b["gap"] - a["gap"] for a, b in zip(found[name], found["dense"])]
    figures = {"settings": [found[name][0]["method"] for name in GRIDS], "gain of the L1 penalty": gains("L1 penalty")}
    conditions = {
        "mean accuracy on new pictures within 0.05 of retraining's": sum(
            b["test"] - a["test"] for a, b in zip(found["pruned first"], found["retraining"])
        ) / len(seeds) < 0.05,
    }  # fmt: skip
    show(result(CLAIM, kept, [row(name, each) for name, each in found.items()], gains("pruned first"), figures, conditions, DATA))


if __name__ == "__main__":
    main()
