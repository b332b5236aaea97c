"""S091, naive Bayes against logistic regression as heads on frozen features, and on mixtures of Gaussians of growing dimension.

Features are those of the trained ViT and of the convolutional net, of digits turned by up to forty degrees, which neither was trained on; samples are
drawn from the training part, as many of each class. A plateau is reached where accuracy stays within two points of what all samples give.
In the mixtures two classes share a unit covariance and the best possible error is the same in every dimension.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable
from typing import Any

import torch

from common import Claim, Setting, result, show
from kept import Kept
from modicum.numerics.linear_heads import logistic, naive_bayes
from scenes.digits import classifier, opened, pictures

CLAIM = Claim(
    id="S091",
    system="Naive Bayes vs logistic linear evaluation",
    claim="On frozen features of a pretrained net fit naive Bayes and logistic heads over growing sample sizes; naive Bayes must reach its plateau "
    "earlier and win few-shot; a Gaussian-mixture simulation shows O(log n) against O(n).",
    metric="accuracy of the naive Bayes head minus that of the logistic one on turned digits, mean over 1, 2, 3 and 5 samples per class and two nets",
    margin=2.0,
    setting=Setting(method="naive Bayes", baselines=("logistic",), seeds=(0, 1, 2, 3, 4, 5, 6, 7, 8, 9), test_samples=0),
)
DATA = "Digits turned by up to forty degrees, features of two nets that were trained on upright ones; 497 test pictures"
Head = Callable[[torch.Tensor, torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]
HEADS: dict[str, Head] = {"naive Bayes": naive_bayes, "logistic": logistic}
COUNTS, FEW, NEAR = (1, 2, 3, 5, 10, 20, 40, 80), 4, 0.02
DIMENSIONS, SAMPLES = (16, 32, 64, 128, 256), tuple(round(8 * 2 ** (step / 2)) for step in range(19))
SEPARATION, EXCESS, REPEATED = 1.5, 0.02, 1


def features(net: str, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What the net's head is given (pictures, width), and classes."""
    model, (x, y) = opened(classifier(net=net), net), pictures(part, "turned")
    with torch.no_grad():
        return (model.features(x) if net == "conv" else model.vit(x).last_hidden_state[:, 0]), y


def heads(net: str, seed: int) -> dict[str, list[float]]:
    """Accuracy of each head by samples per class."""
    (x, y), (held, labels) = features(net, "train"), features(net, "test")
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    by_class = [order[y[order] == label] for label in range(10)]
    found: dict[str, list[float]] = {name: [] for name in HEADS}
    for count in COUNTS:
        some = torch.cat([each[:count] for each in by_class])
        for name, head in HEADS.items():
            weight, bias = head(x[some], y[some], 10)
            found[name].append(float(((held @ weight.T + bias).argmax(1) == labels).float().mean()))
    return found


def plateau(accuracies: list[float]) -> int:
    """Samples per class from which on accuracy is near the last."""
    far = [place for place, value in enumerate(accuracies) if value < accuracies[-1] - NEAR]
    return COUNTS[far[-1] + 1] if far else COUNTS[0]


def needed(name: str, width: int, seed: int) -> float:
    """Samples until a head's error on a mixture is near the best possible one; twice the most that were tried where it never is."""
    mean = SEPARATION / math.sqrt(width) * torch.ones(width)
    best = 0.5 * math.erfc(SEPARATION / math.sqrt(2))
    for count in SAMPLES:
        errors = []
        for turn in range(REPEATED):
            chance = torch.Generator().manual_seed(1000 * seed + turn)
            weight, bias = HEADS[name](*mixture(mean, count, chance), 2)
            x, y = mixture(mean, 4000, chance)
            errors.append(float(((x @ weight.T + bias).argmax(1) != y).float().mean()))
        if statistics.mean(errors) < best + EXCESS:
            return count
    return 2 * SAMPLES[-1]


def mixture(mean: torch.Tensor, count: int, chance: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(count) % 2
    return torch.randn(count, len(mean), generator=chance) + mean * (2 * labels - 1)[:, None], labels


def simulated(seed: int) -> dict[str, list[float]]:
    return {name: [needed(name, width, seed) for width in DIMENSIONS] for name in HEADS}


def exponent(samples: list[float]) -> float:
    """Of the power of the dimension that samples grow with: 1 is O(n)."""
    x, y = ([math.log(value) for value in values] for values in (DIMENSIONS, samples))
    return statistics.linear_regression(x, y).slope


def main() -> None:
    kept, setting = Kept.of(CLAIM.id), CLAIM.setting
    found: list[dict[str, Any]] = []
    for seed in setting.seeds:
        nets = {net: kept(f"{net}, seed {seed}", functools.partial(heads, net, seed)) for net in ("conv", "vit")}
        found.append({"nets": nets, "needed": kept(f"mixtures, seed {seed}", functools.partial(simulated, seed))})
    few = lambda name: [statistics.mean(value for net in each["nets"].values() for value in net[name][:FEW]) for each in found]
    many = lambda name: [statistics.mean(net[name][-1] for net in each["nets"].values()) for each in found]
    flat = lambda name: [statistics.mean(plateau(net[name]) for net in each["nets"].values()) for each in found]
    power = lambda name: [exponent(each["needed"][name]) for each in found]
    rows = [
        {
            "option": name, f"accuracy, {COUNTS[0]} to {COUNTS[FEW - 1]} per class": few(name), f"accuracy, {COUNTS[-1]} per class": many(name),
            "samples per class to the plateau": flat(name), "power of the dimension": power(name),
        }
        for name in HEADS
    ]  # fmt: skip
    gains = [a - b for a, b in zip(few("naive Bayes"), few("logistic"))]
    mean = lambda name: {
        f"n = {width}": statistics.mean(each["needed"][name][place] for each in found) for place, width in enumerate(DIMENSIONS)
    }
    conditions = {
        "naive Bayes reaches its plateau earlier in the mean": statistics.mean(flat("naive Bayes")) < statistics.mean(flat("logistic")),
        "in the mixtures logistic regression needs samples as the dimension, to a power of 0.7 at least": min(power("logistic")) > 0.7,
        "and naive Bayes as its logarithm, to a power of 0.35 at most": max(power("naive Bayes")) < 0.35,
    }
    show(result(CLAIM, kept, rows, gains, {f"samples that {name} needs in mixtures": mean(name) for name in HEADS}, conditions, DATA))


if __name__ == "__main__":
    main()
