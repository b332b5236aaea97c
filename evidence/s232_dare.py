"""S232, DARE: nine tenths of what a fine-tuned net learnt dropped, and three such nets merged, against the mean of all."""

from __future__ import annotations

import functools
import statistics
from typing import Any

from common import Claim, Setting, result, show
from kept import Kept
from tasks import base, best, merged, over, specialists

CLAIM = Claim(
    id="S232",
    system="DARE",
    claim="Randomly drops fraction p of delta parameters, rescales survivors by 1/(1-p); accuracy holds at p=0.9 for a fine-tuned small LM, and "
    "merging DARE-sparsified models retains each task better than plain averaging.",
    metric="mean test accuracy over three tasks of the merge by DARE, its scale chosen on validation pictures, minus that of the plain mean",
    margin=2.0,
    setting=Setting(method="dare density=0.1", baselines=("average",), seeds=(0, 1, 2), test_samples=0, beside=("task_arithmetic",)),
)
OWN, SCALES, DROPS = ("noise", "inverted", "contrast"), (0.3, 0.5, 0.7, 1.0), (0.5, 0.9, 0.99)
DATA = "A ViT trained on clean digits, fine-tuned on each of three corruptions; pictures instead of a language model, for what it takes to train one"


def once(seed: int) -> dict[str, Any]:
    """Accuracies of all by one seed."""
    start, models = base(seed), specialists(seed, OWN)
    mean = lambda tensors: statistics.mean(over(tensors, OWN))
    thin = lambda text: mean(best(f"{text} scale={{scale}}", SCALES, start, models, OWN)[1])
    dropped = {str(drop): merged(f"dare density={1 - drop:g}", start, models[:1], seed=seed) for drop in DROPS}
    return {
        "merges": {
            "dare density=0.1": thin("dare density=0.1"),
            "average": mean(merged("average", start, models)),
            "task_arithmetic": thin("task_arithmetic"),
        },
        "own": statistics.mean(over(model, [task])[0] for task, model in zip(OWN, models)),
        "base": over(start, OWN[:1])[0],
        "tuned": over(models[0], OWN[:1])[0],
        "dropped": {drop: over(tensors, OWN[:1])[0] for drop, tensors in dropped.items()},
    }


def main() -> None:
    kept, setting = Kept.of(CLAIM.id), CLAIM.setting
    found = [kept(f"seed {seed}", functools.partial(once, seed)) for seed in setting.seeds]
    rows = [
        {"option": text, "mean accuracy": [each["merges"][text] for each in found]}
        for text in (setting.method, *setting.baselines, *setting.beside)
    ]
    gains = [each["merges"]["dare density=0.1"] - each["merges"]["average"] for each in found]
    figures = {f"accuracy of one with {float(drop):.0%} dropped": [each["dropped"][drop] for each in found] for drop in map(str, DROPS)}
    figures |= {f"accuracy of {name}": [each[name] for each in found] for name in ("base", "tuned", "own")}
    held = all(each["dropped"]["0.9"] >= each["tuned"] - 0.02 for each in found)
    show(result(CLAIM, kept, rows, gains, figures, {"with nine tenths dropped no seed loses more than two points": held}, DATA))


if __name__ == "__main__":
    main()
