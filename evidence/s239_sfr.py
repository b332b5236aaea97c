"""S239, SFR: new rows are taken in by the dual update without training, and outputs held at a few inputs keep old tasks."""

from __future__ import annotations

import functools
from typing import Any

import torch

from common import Claim, Setting, result, show
from kept import Kept
from learning import PAIRS, at_best, fresh, row, split, task
from modicum.core.recipe import recipe
from modicum.learn.function_space import Dual
from modicum.learn.learner import Learning
from modicum.learn.tasks import Task
from modicum.train.rows import stacked

CLAIM = Claim(
    id="S239",
    system="SFR (function-space dual parameterization)",
    claim="A trained net becomes a sparse function-space dual by its Jacobian kernel and inducing points; a dual update with new rows lowers their "
    "NLPD without training, and as a regularizer the dual reduces forgetting on split digits.",
    metric="mean accuracy at the end on split digits told by parity; the method's minus fine-tuning's",
    margin=2.0,
    setting=Setting(method="sfr", baselines=("finetune",), seeds=(0, 1, 2), test_samples=0),
)
COMMON = "steps=150 rate=0.003"
SFR = [f"sfr hold={hold:g} points=40 {COMMON}" for hold in (0.1, 1.0, 10.0)]
DATA = (
    "A convolutional net of 10,000 parameters, not trained before; five tasks of two digits each, told by whether they are odd, so that all have "
    "one head. How strongly is held is chosen by a seed and pictures of their own. The dual update: a net trained on three pairs takes in rows of a "
    "fourth"
)


def parity(seed: int, part: str) -> list[Task]:
    """Two digits after the other two, by parity."""
    return split(seed, part, parity=True)


def nlpd(seed: int) -> dict[str, float]:
    """Negative log predictive density of new test rows, before and after the dual update, and of the net itself."""
    old = task("old", None, [digit for pair in PAIRS[:3] for digit in pair], seed, "test", parity=True)
    new = task("new", None, PAIRS[3], seed, "test", parity=True)
    learning = Learning(fresh(seed), seed)
    recipe("learn", f"finetune {COMMON}").learn(learning, old)
    module = learning.copied(0)
    both = Task("both", [*old.train, *new.train], new.test)
    mixed = Dual.of(module, both, 80, 1e-2, seed)
    before = Dual(old, mixed.points, mixed.kernel, torch.zeros_like(mixed.alpha), torch.zeros_like(mixed.beta), mixed.delta)
    before = before.updated(module, old.train)
    after = before.updated(module, new.train)
    x, labels = stacked(new.test)
    found = {"net": float(torch.nn.functional.cross_entropy(old.logits(module, (x, labels)).detach(), labels))}
    for name, dual in (("before", before), ("after", after)):
        mean, variance = dual.predicted(module, x)
        draws = torch.randn(200, *mean.shape, generator=torch.Generator().manual_seed(0))
        likely = (mean + draws * variance.sqrt()).softmax(2).mean(0)
        found[name] = float(-likely[torch.arange(len(labels)), labels].clamp(min=1e-9).log().mean())
    return found


def main() -> None:
    kept, seeds = Kept.of(CLAIM.id), CLAIM.setting.seeds
    best, mine = at_best(kept, fresh, parity, SFR, seeds)
    others: dict[str, list[dict[str, Any]]] = {name: at_best(kept, fresh, parity, [f"{name} {COMMON}"], seeds)[1] for name in ("finetune",)}
    told = [kept(f"dual update, seed {seed}", functools.partial(nlpd, seed)) for seed in seeds]
    figures = {"method": best, **{f"NLPD of new rows, {name}": [each[name] for each in told] for name in ("net", "before", "after")}}
    conditions = {"the dual update lowers the NLPD of new rows": all(each["after"] < each["before"] for each in told)}
    gains = [a["accuracy"] - b["accuracy"] for a, b in zip(mine, others["finetune"])]
    table = [row("sfr", mine), *(row(name, each) for name, each in others.items())]
    show(result(CLAIM, kept, table, gains, figures, conditions, DATA))


if __name__ == "__main__":
    main()
