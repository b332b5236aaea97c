"""S053, FLoRA: the change of a convolution as a Tucker core with a factor for each of its sides, against LoRA of the flattened weight."""

from __future__ import annotations

import functools
from typing import Any

import torch

from classifying import at_best, learn
from common import Claim, Setting, result, show
from kept import Kept
from modicum.train.trained import trained
from scenes.digits import classifier, opened, pictures
from scenes.training import classes, drawn

CLAIM = Claim(
    id="S053",
    system="FLoRA (Tucker)",
    claim="Model delta W of N-way weights as Tucker core times mode factors, zero at init, mergeable; on a conv net fine-tune it must beat flattened "
    "LoRA at equal trainable parameters, with the count formula verified.",
    metric="cross-entropy on test pictures under LoRA minus that under FLoRA, which trains fewer numbers",
    margin=2.0,
    setting=Setting(method="flora rank=4", baselines=("lora rank=2",), test_samples=0),
)
RATES, STEPS, BATCH, TASKS = (3e-3, 1e-2, 3e-2, 1e-1), 120, 64, ("inverted", "turned", "covered")
DATA = f"A convolutional net trained on white digits learns each of {', '.join(TASKS)} digits in {STEPS} updates of {BATCH}; 497 test pictures each"


def once(plan: str, task: str, rate: float, seed: int, part: str) -> dict[str, Any]:
    model, (x, y) = opened(classifier(net="conv"), "conv"), pictures("train", task)
    with trained(model, {"body.*.0.weight": plan}, seed=seed, total=STEPS) as t:
        learn(t, ((x[places], y[places]) for places in drawn(len(x), BATCH, seed)), classes, rate, STEPS)
        with torch.no_grad():
            score = float(classes(model, pictures(part, task)))
        delta = t.delta()
        merged = max(float((delta.weight(name, t.places[name].base.dense()) - t.weight(name).detach()).abs().max()) for name in t.places)
        return {
            "score": score,
            "trained": t.count,
            "formula": sum(formula(place.unit.sides, plan) for place in t.places.values()),
            "merged": merged,
        }


def formula(sides: tuple[int, ...], plan: str) -> int:
    """Numbers that a plan trains on a weight of these sides."""
    rank = int(plan.rpartition("=")[2])
    if plan.startswith("lora"):
        rows, columns = sides[0], functools.reduce(int.__mul__, sides[1:])
        return min(rank, rows, columns) * (rows + columns)
    ranks = [min(rank, side) for side in sides]
    return functools.reduce(int.__mul__, ranks) + sum(one * side for one, side in zip(ranks, sides))


def main() -> None:
    kept, setting = Kept.of(CLAIM.id), CLAIM.setting
    plans = (setting.method, *setting.baselines)
    found = {
        plan: [at_best(kept, f"{plan}, {task}", functools.partial(once, plan, task), RATES, setting.seeds) for task in TASKS]
        for plan in plans
    }
    by_seed = {plan: [sum(task[seed]["score"] for task in each) / len(TASKS) for seed in setting.seeds] for plan, each in found.items()}
    gains = [other - mine for mine, other in zip(by_seed[plans[0]], by_seed[plans[1]])]
    trained_ = {plan: each[0][0]["trained"] for plan, each in found.items()}
    rows = [
        {"option": plan, "cross-entropy": by_seed[plan], "trained": [trained_[plan]] * len(by_seed[plan])}
        | {f"rate, {name}": [one["rate"] for one in task] for name, task in zip(TASKS, found[plan])}
        for plan in plans
    ]  # fmt: skip
    every = [one for each in found.values() for task in each for one in task]
    conditions = {
        "no more numbers than LoRA": trained_[plans[0]] <= trained_[plans[1]],
        "as many as the formula says": all(one["trained"] == one["formula"] for one in every),
        "merged exactly": max(one["merged"] for one in every) == 0,
    }
    show(result(CLAIM, kept, rows, gains, {}, conditions, DATA))


if __name__ == "__main__":
    main()
