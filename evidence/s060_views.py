"""S060, views of features: how pruned nets see clean and corrupted digits, and which pictures they answer otherwise."""

from __future__ import annotations

import functools
from typing import Any

import torch

from classifying import learn
from common import Claim, Setting, result, show
from modicum.judge.views import flipped, view
from modicum.train.learning import plan_of
from modicum.train.scoring import scored
from modicum.train.trained import Trained
from scenes import digits
from scenes.training import classes, drawn
from small import DATA, shared

STEPS, METHODS = 250, ("dense", "snip keep=0.1 layers=uniform", "gradual keep=0.1", "rigl keep=0.1 every=20")

CLAIM = Claim(
    id="S060",
    system="Robustness Lottery visual analysis",
    claim="For several pruning methods compute feature norms, feature-to-class angles and margins on clean and corrupted inputs; the report must "
    "compare methods and list samples that flip after pruning.",
    metric="mean margin on clean digits minus that on blurred ones, over the pruned nets",
    margin=2.0,
    setting=Setting(method="pruned, blurred", baselines=("pruned, clean",), test_samples=0),
)


def once(method: str, seed: int) -> dict[str, Any]:
    """Views of the test part, clean and corrupted, and what the net answers."""
    torch.manual_seed(seed)
    model, (x, y) = digits.Conv(), digits.pictures("train")
    with Trained(model, plan_of(model, method), seed=seed, total=STEPS, scratch=True) as t:
        model.train()
        scored(t, lambda: classes(model, (x[:256], y[:256])))
        learn(t, ((x[places], y[places]) for _, places in zip(range(STEPS), drawn(len(x), 64, seed))), classes, 1e-2, STEPS)
        model.eval()
        found: dict[str, Any] = {}
        for name in (None, "noise", "blur"):
            new, labels = digits.pictures("test", name)
            with torch.no_grad():
                seen = view(model.features(new), model.head.weight, model.head.bias, labels)
            found[str(name)] = {what: float(value.mean()) for what, value in seen.tensors().items()}
            found[f"{name} answers"] = seen.chosen.tolist()
    return found


def main() -> None:
    kept, setting = shared(), CLAIM.setting
    labels = digits.pictures("test")[1]
    found = {
        method: [kept(f"view {method}, seed {seed}", functools.partial(once, method, seed)) for seed in setting.seeds] for method in METHODS
    }
    rows, lists = [], {}
    for method, each in found.items():
        row: dict[str, Any] = {"option": method}
        for name, said in (("None", "clean"), ("noise", "noise"), ("blur", "blur")):
            row |= {f"{what}, {said}": [one[name][what] for one in each] for what in each[0][name]}
        turned = [flipped(torch.tensor(a["None answers"]), torch.tensor(b["None answers"]), labels) for a, b in zip(found["dense"], each)]
        row["pictures that turn wrong"] = [len(pair["wrong"]) for pair in turned]
        row["that turn right"] = [len(pair["right"]) for pair in turned]
        rows.append(row)
        lists[f"{method}: turn wrong, first seed"] = turned[0]["wrong"]
    rows = [*rows[1:], rows[0]]
    gains = [sum(row["margin, clean"][place] - row["margin, blur"][place] for row in rows[:-1]) / 3 for place in range(len(setting.seeds))]
    conditions = {
        "pictures that flip are listed for each pruned net": all(
            row["pictures that turn wrong"][0] == len(lists[f"{row['option']}: turn wrong, first seed"]) for row in rows
        ),
        "angles to the own class grow under blur in every net": all(
            a > b for row in rows for a, b in zip(row["angle, blur"], row["angle, clean"])
        ),
    }
    show(result(CLAIM, kept, rows, gains, lists, conditions, DATA))


if __name__ == "__main__":
    main()
