"""S098, BA-LoRA: principal factors with three terms beside the loss, each alone too, against LoRA, on pictures of which many are mislabelled."""

from __future__ import annotations

import functools
import statistics
from typing import Any

import torch

from classifying import CHOOSING, at_best, learn
from common import Claim, Setting, result, show
from kept import Kept
from modicum.train.alleviated import alleviated
from modicum.train.trained import trained
from scenes.digits import accuracy, classifier, opened, pictures
from scenes.training import classes, drawn

CLAIM = Claim(
    id="S098",
    system="BA-LoRA",
    claim="LoRA from principal singular components plus consistency (to pretrained outputs), diversity (output covariance/entropy) and SVD (top "
    "singular mass) regularizers, each switchable; fine-tuning on biased or noisy data must beat plain LoRA.",
    metric="accuracy on test pictures, whose classes are right, minus that of LoRA of the same rank",
    margin=2.0,
    setting=Setting(method="pissa rank=4, all terms", baselines=("lora rank=4",), beside=("pissa rank=4",), test_samples=0),
)
RATES, STEPS, BATCH, WRONG, TASK = (1e-3, 3e-3, 1e-2), 150, 64, 0.4, "turned"
ALL = {"consistency": 1.0, "diversity": 0.01, "spectrum": 0.1}
NONE = dict.fromkeys(ALL, 0.0)
WAYS: dict[str, tuple[str, dict[str, float]]] = {
    "pissa rank=4, all terms": ("pissa rank=4", ALL), "lora rank=4": ("lora rank=4", NONE), "pissa rank=4": ("pissa rank=4", NONE),
    **{f"pissa rank=4, {term} alone": ("pissa rank=4", NONE | {term: ALL[term]}) for term in ALL},
}  # fmt: skip
DATA = (
    f"A ViT trained on white digits learns {TASK} ones in {STEPS} updates of {BATCH}, {WRONG:.0%} of them of a wrong class by chance; "
    "497 test pictures"
)


def spoiled(y: torch.Tensor, seed: int) -> torch.Tensor:
    """Classes of which a share are others by chance."""
    chance = torch.Generator().manual_seed(seed)
    moved = (y + torch.randint(1, 10, y.shape, generator=chance)) % 10
    return torch.where(torch.rand(y.shape, generator=chance) < WRONG, moved, y)


def once(plan: str, terms: dict[str, float], rate: float, seed: int, part: str) -> dict[str, Any]:
    """Rates are chosen by the loss on validation pictures whose classes are right, for all ways alike."""
    model, before = (opened(classifier(net="vit"), "vit") for _ in range(2))
    x, y = pictures("train", TASK)
    y, objective = spoiled(y, seed), alleviated(before, **terms)
    with trained(model, plan, seed=seed, total=STEPS) as t:
        batches = ((x[places], y[places]) for places in drawn(len(x), BATCH, seed))
        learn(t, batches, lambda module, batch: objective(module, batch)[0].mean(), rate, STEPS)
        with torch.no_grad():
            score = float(classes(model, pictures(part, TASK, seed=7)))
        return {"score": score, "accuracy": accuracy(model, *pictures(part, TASK, seed=7)), "trained": t.count}


def main() -> None:
    kept, setting = Kept.of(CLAIM.id), CLAIM.setting
    found = {name: at_best(kept, name, functools.partial(once, *way), RATES, setting.seeds) for name, way in WAYS.items()}
    right = {name: [one["accuracy"] for one in each] for name, each in found.items()}
    gains = [mine - other for mine, other in zip(right[setting.method], right["lora rank=4"])]
    rows = [
        {"option": name, "accuracy": right[name], "cross-entropy": [one["score"] for one in each], "rate": [one["rate"] for one in each]}
        for name, each in found.items()
    ]
    mean = {name: statistics.mean(each) for name, each in right.items()}
    conditions = {"better than the same factors without the terms": mean[setting.method] > mean["pissa rank=4"]}
    figures = {"seed of the run that rates are chosen by": CHOOSING, "weights of the terms": ALL}
    show(result(CLAIM, kept, rows, gains, figures, conditions, DATA))


if __name__ == "__main__":
    main()
