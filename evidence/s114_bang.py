"""S114, BANG: digits whose colours go with their class while a net is fine-tuned and with nothing after; its mean with the base."""

from __future__ import annotations

import functools
import statistics
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from common import Claim, Setting, result, show
from kept import Kept
from scenes.digits import COLOURS, classifier, logits, opened, pictures
from scenes.training import drawn, fitted
from scenes.tuned import net
from tasks import Tensors, base, merged

CLAIM = Claim(
    id="S114",
    system="BANG / spurious feature diversification",
    claim="On MultiColorMNIST interpolate pretrained and fine-tuned weights; count cases both err yet the average is right, and show "
    "confidence-balanced "
    "fine-tuning (label smoothing/mixup) raises averaged OOD accuracy over WiSE-FT.",
    metric="accuracy on pictures whose colours tell nothing of the mean of base and net tuned with smoothed labels and mixed pictures, "
    "minus that of WiSE-FT",
    margin=2.0,
    setting=Setting(
        method="wise_ft of a net tuned with smoothing and mixup", baselines=("wise_ft",), seeds=(0, 1, 2), test_samples=0,
        beside=("wise_ft of a net tuned with smoothing", "wise_ft of a net tuned with mixup"),
    ),
)  # fmt: skip
STEPS, RATE, TRUE, PATCH = 120, 5e-4, 0.9, 4
WAYS = {"wise_ft": (0.0, False), "wise_ft of a net tuned with smoothing": (0.2, False), "wise_ft of a net tuned with mixup": (0.0, True),
        CLAIM.setting.method: (0.2, True)}  # fmt: skip
DATA = (
    f"Digits with a coloured patch in each of two corners that goes with the class for {TRUE:.0%} of the pictures while a ViT is "
    f"fine-tuned, and with "
    "nothing, or half the time with another class, where it is judged; the base was trained on digits without; both weigh a half"
)


def patched(part: str, true: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures with two patches whose colours go with the class in a share ``true`` of them, each for itself."""
    x, y = pictures(part)
    chance, x = torch.Generator().manual_seed(1000 + seed), x.clone()
    palette = torch.cat([COLOURS, COLOURS[:3] / 2])
    for corner in range(2):
        told = torch.rand(len(y), generator=chance) < true
        other = torch.randint(10, (len(y),), generator=chance)
        colour = palette[torch.where(told, (y + 3 * corner) % 10, other)][:, :, None, None]
        rows = slice(0, PATCH) if corner else slice(-PATCH, None)
        x[:, :, rows, :PATCH] = colour
    return x, y


def fine_tuned(seed: int, smooth: float, mixed: bool) -> Tensors:
    """The net tuned where colours tell the class."""
    torch.manual_seed(seed)
    model, (x, y) = opened(classifier(net="vit", seed=seed), "vit"), patched("train", TRUE, seed)
    chance = torch.Generator().manual_seed(seed)

    def loss(module: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        pictures_, labels = batch
        if not mixed:
            return F.cross_entropy(module(pictures_).logits, labels, label_smoothing=smooth)
        share, order = float(torch.distributions.Beta(0.4, 0.4).sample()), torch.randperm(len(labels), generator=chance)
        found = module(share * pictures_ + (1 - share) * pictures_[order]).logits
        one, other = (F.cross_entropy(found, each, label_smoothing=smooth) for each in (labels, labels[order]))
        return share * one + (1 - share) * other

    fitted(model, ((x[places], y[places]) for places in drawn(len(x), 64, seed)), loss, RATE, STEPS)
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def once(seed: int) -> dict[str, Any]:
    """Accuracies of each way, of its net alone and of the mean, and what the mean gets right where both err."""
    start, found = base(seed), {}
    for text, (smooth, mixed) in WAYS.items():
        tuned = fine_tuned(seed, smooth, mixed)
        mean = merged("wise_ft", start, [tuned], [0.5])
        mine: dict[str, float] = {}
        for shift, true in (("none", TRUE), ("random", 0.0)):
            x, y = patched("test", true, 50 + seed)
            right = {who: logits(net(each), x).argmax(1) == y for who, each in (("base", start), ("tuned", tuned), ("mean", mean))}
            mine |= {f"{who}, {shift}": float(each.float().mean()) for who, each in right.items()}
            both_err = ~right["base"] & ~right["tuned"]
            mine[f"both err, {shift}"] = float(both_err.float().mean())
            mine[f"both err and the mean is right, {shift}"] = float((both_err & right["mean"]).float().mean())
        found[text] = mine
    return found


def main() -> None:
    kept, setting = Kept.of(CLAIM.id), CLAIM.setting
    found = [kept(f"seed {seed}", functools.partial(once, seed)) for seed in setting.seeds]
    rows = [
        {"option": text, "shifted accuracy": [each[text]["mean, random"] for each in found],
         "accuracy where colours tell": [each[text]["mean, none"] for each in found],
         "shifted, tuned net alone": [each[text]["tuned, random"] for each in found]}
        for text in (setting.method, *setting.baselines, *setting.beside)
    ]  # fmt: skip
    gains = [each[setting.method]["mean, random"] - each["wise_ft"]["mean, random"] for each in found]
    names = ("base, random", "both err, random", "both err and the mean is right, random")
    figures = {f"{name} (wise_ft)": [each["wise_ft"][name] for each in found] for name in names}
    corrected = statistics.mean(each["wise_ft"]["both err and the mean is right, random"] for each in found)
    show(result(CLAIM, kept, rows, gains, figures, {"the mean is right in cases in which both err": corrected > 0}, DATA))


if __name__ == "__main__":
    main()
