"""S408, a bound by sketching: what magnitude pruning leaves of a net on digits, round by round, against bounds by norms."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import torch
from torch import nn

from common import Claim, Setting, result, show
from kept import Kept
from modicum.numerics.sketching import norm_bounds, pruning_bound
from scenes import digits
from scenes.training import classes, drawn
from scenes.training import fitted as learnt

KEEPS = (1.0, 0.5, 0.25, 0.12, 0.06)

CLAIM = Claim(
    id="S408",
    system="Magnitude-pruning bound by sketching",
    claim="A function computes the bound for a pruned MNIST MLP from pruning error, layer norms and sparse-sketch dimensions; the number is below "
    "norm-based bounds on the same weights and follows iterative pruning rounds.",
    metric="logarithm of the least of three bounds by norms minus that of the bound by sketching, at the last round",
    margin=2.0,
    setting=Setting(method="by sketching", baselines=("by norms",), test_samples=0),
)
DATA = "A net of three layers on scikit-learn's digits, 1000 to learn, pruned by magnitude and trained on in five rounds"


def once(seed: int) -> list[dict[str, Any]]:
    """Bounds round by round; the margin is the median over the training rows of the right answer's lead."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(256, 64, bias=False), nn.ReLU(), nn.Linear(64, 64, bias=False), nn.ReLU(), nn.Linear(64, 10, bias=False)
    )
    (x, y), (new, labels) = ((each[:, :1], classes) for each, classes in (digits.pictures("train"), digits.pictures("test")))
    layers, found = [model[1], model[3], model[5]], []
    masks = [torch.ones_like(layer.weight) for layer in layers]
    for keep in KEEPS:
        with torch.no_grad():
            before = [layer.weight.clone() for layer in layers]
            for layer, mask in zip(layers, masks):
                count = max(1, round(keep * mask.numel()))
                mask.copy_((layer.weight.abs() >= layer.weight.abs().flatten().kthvalue(mask.numel() - count + 1).values).float())
                layer.weight.mul_(mask)
        moved = [float(torch.linalg.matrix_norm(a - layer.weight, 2)) for a, layer in zip(before, layers)]
        hooks = [layer.weight.register_hook(functools.partial(torch.mul, mask)) for layer, mask in zip(layers, masks)]
        learnt(model, ((x[places], y[places]) for places in drawn(len(x), 64, seed)), classes, 3e-3, 150)
        for hook in hooks:
            hook.remove()
        weights = [layer.weight.detach() for layer in layers]
        with torch.no_grad():
            logits = model(x)
            right = logits.gather(1, y[:, None])[:, 0]
            margin = float((right - logits.scatter(1, y[:, None], -math.inf).amax(1)).median().clamp_min(1e-3))
            largest = float(x.flatten(1).norm(dim=1).max())
            gap = float((logits.argmax(1) == y).float().mean() - (model(new).argmax(1) == labels).float().mean())
        mine = pruning_bound(weights, weights, len(x), margin, largest)
        found.append(
            {
                "keep": keep,
                "bound": mine["bound"],
                "numbers": mine["numbers"],
                "norms": min(norm_bounds(weights, len(x), margin, largest).values()),
                "gap": gap,
                "moved": moved,
            }
        )
    return found


def main() -> None:
    kept, setting = Kept.of(CLAIM.id), CLAIM.setting
    found = [kept(f"seed {seed}", functools.partial(once, seed)) for seed in setting.seeds]
    rows = [
        {"option": option, **{f"bound, {keep:g} kept": [each[place][name] for each in found] for place, keep in enumerate(KEEPS)}}
        for option, name in (("by sketching", "bound"), ("by norms", "norms"))
    ]
    gains = [math.log(each[-1]["norms"]) - math.log(each[-1]["bound"]) for each in found]
    falls = all(a["bound"] >= b["bound"] for each in found for a, b in itertools.pairwise(each))
    figures = {
        "accuracy in training above that on the test part, last round": [each[-1]["gap"] for each in found],
        "numbers of the sketch, last round": [each[-1]["numbers"] for each in found],
    }
    conditions = {
        "it falls from round to round": falls,
        "below bounds by norms in every round": all(r["bound"] < r["norms"] for each in found for r in each),
    }
    show(result(CLAIM, kept, rows, gains, figures, conditions, DATA))


if __name__ == "__main__":
    main()
