"""S269, LAFTR: how far a net's outputs moved on data that nobody kept, told by gates and by Fisher information."""

from __future__ import annotations

import functools
import math
import statistics
from typing import Any

import torch

from common import Claim, Setting, result, show
from kept import Kept
from learning import at_best, fresh, split
from modicum.core.recipe import recipe
from modicum.learn.function_space import gradients
from modicum.learn.gated import Gated, distance, true_distance
from modicum.learn.learner import Learning
from modicum.learn.tasks import Task

CLAIM = Claim(
    id="S269",
    system="LAFTR (function space distance)",
    claim="One gate probability per rectified unit and the inputs' moments predict the distance between the outputs of two weight sets better than "
    "approximations of the Fisher type, and regularize continual learning.",
    metric="mean absolute error of the logarithm of the distance, along trainings on later tasks; the Fisher diagonal's minus the method's",
    margin=2.0,
    setting=Setting(method="laftr", baselines=("fisher diagonal",), seeds=(0, 1, 2), test_samples=0),
)
COMMON = "steps=150 rate=0.003"
LAFTR = [f"laftr hold={hold:g} {COMMON}" for hold in (0.1, 1.0, 10.0)]
LENGTHS = (5, 20, 50, 150)
DATA = (
    "A convolutional net of 10,000 parameters learns two digits by parity and then others; its outputs on the first task's rows move, and the "
    "distance is told without those rows. Forgetting is judged on five such tasks"
)


def parity(seed: int, part: str) -> list[Task]:
    """Two digits after the other two, by parity."""
    return split(seed, part, parity=True)


def told(seed: int) -> dict[str, Any]:
    """Distances after trainings of several lengths: the true one, by gates, and by the diagonal of the outputs' Fisher information."""
    first, *later = parity(seed, "test")
    learning = Learning(fresh(seed), seed)
    recipe("learn", f"finetune {COMMON}").learn(learning, first)
    old, known = learning.copied(0), Gated.of(learning.copied(0), first)
    inputs = torch.cat([row[0] for row in first.train])
    diagonal = gradients(old, first, inputs).square().sum(1).mean(0)
    flat = lambda module: torch.cat([each.detach().reshape(-1) for each in module.parameters()])
    found: dict[str, list[float]] = {"true": [], "laftr": [], "fisher diagonal": []}
    for place, steps in enumerate(LENGTHS):
        on = Learning(old, seed)
        recipe("learn", f"finetune steps={steps} rate=0.003").learn(on, later[place % len(later)])
        new, drawn = on.copied(0), known.drawn(1000, seed)
        with torch.no_grad():
            found["laftr"].append(float(distance(known.answered(old, drawn), known.answered(new, drawn))))
        found["true"].append(true_distance(old, new, first, first.train))
        found["fisher diagonal"].append(float(0.5 * (diagonal * (flat(new) - flat(old)).square()).sum()))
    return found


def main() -> None:
    kept, seeds = Kept.of(CLAIM.id), CLAIM.setting.seeds
    measured = [kept(f"distances, seed {seed}", functools.partial(told, seed)) for seed in seeds]
    off = lambda name: [statistics.mean(abs(math.log(a / b)) for a, b in zip(each[name], each["true"])) for each in measured]
    best, held = at_best(kept, fresh, parity, LAFTR, seeds)
    plain = at_best(kept, fresh, parity, [f"finetune {COMMON}"], seeds)[1]
    table = [{"option": name, "error of the logarithm": off(name)} for name in ("laftr", "fisher diagonal")]
    figures = {
        **{f"distances by the first seed, {name}": measured[0][name] for name in measured[0]},
        "learner": best, "accuracy at the end": [each["accuracy"] for each in held],
        "fine-tuning's": [each["accuracy"] for each in plain],
    }  # fmt: skip
    conditions = {"held, more accuracy than fine-tuning in every seed": all(a["accuracy"] > b["accuracy"] for a, b in zip(held, plain))}
    gains = [b - a for a, b in zip(off("laftr"), off("fisher diagonal"))]
    show(result(CLAIM, kept, table, gains, figures, conditions, DATA))


if __name__ == "__main__":
    main()
