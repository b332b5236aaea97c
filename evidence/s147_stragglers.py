"""S147, straggler layers: how sharp the loss is in each layer on the way between a base and its fine-tuned net, and accuracy on other corruptions."""

from __future__ import annotations

import functools
import statistics
from typing import Any

import torch
from torch.nn import functional as F

from common import Claim, Setting, result, show
from kept import Kept
from modicum.merging.sharpness import sharpness
from scenes.tuned import net, of, state, tuned
from tasks import TASKS, Tensors, base, merged, over

CLAIM = Claim(
    id="S147",
    system="Straggler-layer sharpness (RFT/CLIP)",
    claim="Interpolates zero-shot and fine-tuned weights over alpha, computes per-layer sharpness (loss rise when one layer is perturbed), "
    "ranks straggler "
    "layers, correlates with shifted-data accuracy, and sparsifying those layers repairs failing interpolations.",
    metric="mean accuracy on five other corruptions of an interpolation whose straggler layer is made sparse minus that of the plain one, at a half",
    margin=2.0,
    setting=Setting(
        method="straggler density=0.1",
        baselines=("wise_ft",),
        seeds=(0, 1, 2),
        test_samples=0,
        beside=("straggler of the least sharp layer",),
    ),
)
ALPHAS, OWN = (0.25, 0.5, 0.75, 1.0), ("noise", "inverted", "contrast")
DATA = "A ViT trained on clean digits, fine-tuned on each of three corruptions, judged on the other five; sharpness on clean validation pictures"


def loss(tensors: Tensors) -> float:
    """On clean validation pictures."""
    x, y = of("none", "validation")
    with torch.no_grad():
        return float(F.cross_entropy(net(tensors)(x).logits, y))


def layers(tensors: Tensors) -> dict[str, list[str]]:
    """Matrices of each block."""
    found: dict[str, list[str]] = {}
    for name, value in tensors.items():
        if ".layers." in name and value.ndim == 2:
            found.setdefault(name.partition(".layers.")[0] + ".layers." + name.partition(".layers.")[2].split(".")[0] + ".", []).append(
                name
            )
    return found


def once(seed: int) -> dict[str, Any]:
    """Sharpness of each layer and accuracy at each place of three ways, and accuracy with one layer made sparse."""
    start, told = base(seed), []
    for task in OWN:
        model, others = state(tuned(task=task, seed=seed)), [other for other in TASKS if other != task]
        parts = layers(model)
        shifted = lambda tensors, others=others: statistics.mean(over(tensors, others))
        places = []
        for alpha in ALPHAS:
            there = merged("wise_ft", start, [model], [alpha])
            sharp = sharpness(
                there, {**parts, "all": [name for names in parts.values() for name in names]}, loss, draws=2, radius=0.3, seed=seed
            )
            places.append({"sharp": sharp, "accuracy": shifted(there)})
        half = places[ALPHAS.index(0.5)]
        ranked = sorted(parts, key=lambda layer: half["sharp"][layer])
        sparse = lambda layer, model=model: merged(f"straggler density=0.1 layers={layer}*", start, [model], [0.5])
        told.append({
            "places": places, "plain": half["accuracy"], "straggler": shifted(sparse(ranked[-1])), "least": shifted(sparse(ranked[0])),
            "which": ranked[-1],
        })  # fmt: skip
    return {"ways": told}


def correlation(one: list[float], other: list[float]) -> float:
    """Between two lists of numbers."""
    return float(torch.corrcoef(torch.tensor([one, other], dtype=torch.float64))[0, 1])


def main() -> None:
    kept, setting = Kept.of(CLAIM.id), CLAIM.setting
    found = [kept(f"seed {seed}", functools.partial(once, seed))["ways"] for seed in setting.seeds]
    of_each = lambda name: [statistics.mean(way[name] for way in ways) for ways in found]
    rows = [
        {"option": text, "accuracy on other corruptions": of_each(name)}
        for text, name in ((setting.method, "straggler"), (setting.baselines[0], "plain"), (setting.beside[0], "least"))
    ]
    gains = [a - b for a, b in zip(of_each("straggler"), of_each("plain"))]
    straggling, whole = [], []
    for ways in found:
        points = [(place["sharp"][way["which"]], place["sharp"]["all"], place["accuracy"]) for way in ways for place in way["places"]]
        one, all_, accuracy = (list(column) for column in zip(*points))
        straggling.append(correlation(one, accuracy))
        whole.append(correlation(all_, accuracy))
    figures = {"correlation of the straggler layer's sharpness with accuracy": straggling, "of the overall sharpness": whole}
    conditions = {"the straggler layer's sharpness tells more than the overall one, in the mean":
                  statistics.mean(map(abs, straggling)) > statistics.mean(map(abs, whole))}  # fmt: skip
    show(result(CLAIM, kept, rows, gains, figures, conditions, DATA))


if __name__ == "__main__":
    main()
