"""S063, activating while pruning: a share of what goes serves dead units, against pruning by magnitude alone."""

from __future__ import annotations

import functools

import torch
from torch import nn

from classifying import learn
from common import Claim, Setting, result, show
from modicum.train.trained import Trained
from scenes import digits
from scenes.training import classes, drawn
from small import DATA, row, shared, worth

STEPS, KEEP = 500, 0.05

CLAIM = Claim(
    id="S063",
    system="AP (Activating-while-Pruning)",
    claim="Record each ReLU unit's dynamic dead-neuron rate; split each pruning round between the base criterion and a step that re-activates the "
    "deadest nodes; at equal sparsity DNR drops and accuracy exceeds the base method.",
    metric="accuracy with a share of each round for dead units minus that of gradual pruning, one weight in twenty left",
    margin=2.0,
    setting=Setting(
        method="activating keep=0.05", baselines=('activating keep=0.05 share=0',), seeds=(0, 1, 2, 3, 4), test_samples=0
    ),
)  # fmt: skip


def once(method: str, seed: int) -> dict[str, float]:
    """A net of rectifiers under a method, and the share of answers of its units on the test part that are zero."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 10))
    (x, y), (new, _) = digits.pictures("train"), digits.pictures("test")
    plan = {"1.weight": method, "3.weight": method, "*.bias": "dense", "5.weight": "dense"}
    with Trained(model, plan, seed=seed, total=STEPS) as t:
        learn(t, ((x[places], y[places]) for _, places in zip(range(STEPS), drawn(len(x), 16, seed))), classes, 1e-2, STEPS)
        with torch.no_grad():
            first = model[:3](new)
            second = model[3:5](first)
        dead = float((torch.cat([first, second], 1) == 0).float().mean())
        silent = float((torch.cat([first, second], 1) == 0).all(0).float().mean())
        values = sum(form.values for name, form in t.forms().items() if name in ("1.weight", "3.weight"))
        return {**worth(model), "dynamic dead rate": dead, "units always silent": silent, "values": values}


def main() -> None:
    kept, setting = shared(), CLAIM.setting
    rows = [
        row(method, [kept(f"rectifiers {method}, seed {seed}", functools.partial(once, method, seed)) for seed in setting.seeds])
        for method in (setting.method, *setting.baselines)
    ]
    gains = [mine - other for mine, other in zip(rows[0]["accuracy"], rows[1]["accuracy"])]
    lower = [other - mine for mine, other in zip(rows[0]["dynamic dead rate"], rows[1]["dynamic dead rate"])]
    conditions = {"as many weights": rows[0]["values"] == rows[1]["values"], "fewer answers are zero in the mean": sum(lower) > 0}
    show(result(CLAIM, kept, rows, gains, {"by how much fewer answers are zero": lower}, conditions, DATA))


if __name__ == "__main__":
    main()
