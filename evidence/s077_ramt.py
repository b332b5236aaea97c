"""S077, regularized mask tuning: entries of a ViT switched off for a task, with gradients that spare what it knew, against the ViT as it was."""

from __future__ import annotations

import functools
import statistics
from typing import Any

import torch

from classifying import CHOOSING
from common import Claim, Setting, result, show
from kept import Kept
from modicum.forms import Switched
from modicum.train.guided import guided
from modicum.train.objectives import diverging
from modicum.train.trained import Trained, trained
from scenes.digits import accuracy, classifier, opened, pictures
from scenes.training import classes, drawn

CLAIM = Claim(
    id="S077",
    system="R-AMT (regularized mask tuning)",
    claim="Pick task-important weights by gradient magnitude, learn straight-through binary masks on them with gradient dropout guided by a "
    "general-knowledge gradient; masking a few percent of a small CLIP must beat zero-shot, storing bits only.",
    metric="accuracy on test pictures of the task minus that of the ViT as it was",
    margin=2.0,
    setting=Setting(method="ramt keep=0.1, guided", baselines=("the ViT as it was",), beside=("ramt keep=0.1",), test_samples=0),
)
PLAN, RATES, STEPS, BATCH, TASK = "ramt keep=0.1", (1e-3, 3e-3, 1e-2), 150, 64, "turned"
DATA = (
    f"A ViT trained on white digits, in the place of CLIP, learns {TASK} ones in {STEPS} updates of {BATCH}; what it knew are its answers to them "
    "before. 497 test pictures of the task and as many of white digits"
)


def learn(t: Trained, before: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, rate: float, seed: int, guiding: bool) -> None:
    """Updates by Adam under a cosine, with the gradient as it is or guided by the divergence from what the model said before."""
    optimizer, chance = torch.optim.Adam(t.parameters(), lr=rate), torch.Generator().manual_seed(seed)
    pace = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _, places in zip(range(STEPS), drawn(len(x), BATCH, seed)):
        optimizer.zero_grad()
        said = t.module(x[places]).logits
        special = torch.nn.functional.cross_entropy(said, y[places])
        if guiding and not t.watched:
            with torch.no_grad():
                known = before(x[places]).logits
            guided(special, diverging(said, known).mean(), t.parameters(), chance)
        else:
            special.backward()
        optimizer.step()
        pace.step()
        t.revise(optimizer)


def once(guiding: bool, rate: float, seed: int, part: str) -> dict[str, Any]:
    model, before = (opened(classifier(net="vit"), "vit") for _ in range(2))
    x, y = pictures("train", TASK, seed=seed)
    with trained(model, PLAN, seed=seed, total=STEPS) as t:
        learn(t, before, x, y, rate, seed, guiding)
        with torch.no_grad():
            score = float(classes(model, pictures(part, TASK, seed=7)))
        forms, total = t.forms(), sum(place.unit.size for place in t.places.values())
        off = sum(int((t.weight(name) != place.base.dense()).sum()) for name, place in t.places.items())
        return {
            "score": score, "accuracy": accuracy(model, *pictures(part, TASK, seed=7)), "before's": accuracy(model, *pictures(part)),
            "off": off / total, "bits": 8 * t.delta().nbytes / total, "switched": all(isinstance(form, Switched) for form in forms.values()),
        }  # fmt: skip


def best(kept: Kept, guiding: bool, seeds: tuple[int, ...]) -> list[dict[str, Any]]:
    name = "guided" if guiding else "plain"
    tried = {rate: kept(f"{name}, {rate:g}", functools.partial(once, guiding, rate, CHOOSING, "validation"))["score"] for rate in RATES}
    rate = min(tried, key=tried.__getitem__)
    return [kept(f"{name}, {rate:g}, seed {seed}", functools.partial(once, guiding, rate, seed, "test")) | {"rate": rate} for seed in seeds]


def untouched() -> dict[str, float]:
    model = opened(classifier(net="vit"), "vit")
    return {"accuracy": accuracy(model, *pictures("test", TASK, seed=7)), "before's": accuracy(model, *pictures("test"))}


def main() -> None:
    kept, setting = Kept.of(CLAIM.id), CLAIM.setting
    found = {setting.method: best(kept, True, setting.seeds), setting.beside[0]: best(kept, False, setting.seeds)}
    zero = kept("as it was", untouched)
    of = lambda name, what: [one[what] for one in found[name]]
    made = lambda name: {
        "option": name, "accuracy": of(name, "accuracy"), "accuracy on white digits": of(name, "before's"), "share of entries off": of(name, "off"),
        "rate": of(name, "rate"),
    }  # fmt: skip
    count = len(setting.seeds)
    none = {"option": setting.baselines[0], "accuracy": [zero["accuracy"]] * count, "accuracy on white digits": [zero["before's"]] * count}
    rows = [made(setting.method), none | {"share of entries off": [0.0] * count, "rate": [0.0] * count}, made(setting.beside[0])]
    gains = [mine - zero["accuracy"] for mine in of(setting.method, "accuracy")]
    figures = {"bits stored per entry": of(setting.method, "bits")}
    conditions = {
        "a few percent of entries are off": 0 < statistics.mean(of(setting.method, "off")) < 0.1,
        "bits alone are stored": all(of(setting.method, "switched")),
        "what it knew is spared more than without the guide": statistics.mean(of(setting.method, "before's"))
        >= statistics.mean(of(setting.beside[0], "before's")),
    }
    show(result(CLAIM, kept, rows, gains, figures, conditions, DATA))


if __name__ == "__main__":
    main()
