"""S094, parameter-efficient sparsity: a mask and a change learnt through thin matrices, against movement with all scores and weights."""

from __future__ import annotations

import functools

import torch

from common import Claim, Setting, result, show
from modicum.train.learning import plan_of
from modicum.train.trained import Trained
from s425_smp import DATA, RATES, STEPS, TASK
from s425_smp import once as trained_whole
from scenes import digits
from small import fitted, row, shared

NEAR = 0.05

CLAIM = Claim(
    id="S094",
    system="PST",
    claim="Score weights by magnitude plus learned importance built from a low-rank product and row/column vectors, mask by straight-through top-k; "
    "with about 1.5% trainable parameters a small BERT must match movement pruning at equal sparsity.",
    metric="test loss on noisy digits of movement pruning minus that of thin matrices, plus 0.05, a tenth of the weights kept",
    margin=2.0,
    setting=Setting(method="pst keep=0.1 rank=1", baselines=("movement keep=0.1",), test_samples=0),
)


def once(method: str, seed: int) -> dict[str, float]:
    """From the net of clean digits to the task, with the numbers that are trained of the weights under a mask."""
    model = digits.opened(digits.classifier(net="vit", seed=seed), "vit")
    plan = plan_of(model, method)
    with Trained(model, plan, seed=seed) as t:
        count = sum(value.numel() for place in t.places.values() if str(place.method) != "dense" for value in place.state.trained.values())
        size = sum(place.unit.size for place in t.places.values() if str(place.method) != "dense")
    return fitted(model, plan, seed, STEPS, RATES["smp"], scratch=False, task=TASK) | {"share trained": count / size}


def main() -> None:
    kept, setting = shared(), CLAIM.setting
    torch.manual_seed(0)
    (name,), method = setting.baselines, setting.method
    mine = row(method, [kept(f"{method}, seed {seed}, {TASK}", functools.partial(once, method, seed)) for seed in setting.seeds])
    other = row(name, [kept(f"{name}, seed {seed}, {TASK}", functools.partial(trained_whole, name, seed)) for seed in setting.seeds])
    other["share trained"] = [2.0] * len(setting.seeds)
    gains = [NEAR + b - a for a, b in zip(mine["loss"], other["loss"])]
    conditions = {
        "as many weights kept": mine["values"] == other["values"],
        "a tenth of the numbers trained": max(mine["share trained"]) < 0.1,
    }
    show(result(CLAIM, kept, [mine, other], gains, {}, conditions, DATA))


if __name__ == "__main__":
    main()
