"""S177, layer adaptive progressive pruning: filters removed early, by thresholds that layers learn, against the same share of every layer."""

from __future__ import annotations

import functools
from typing import Any

import torch

from common import Claim, Setting, result, show
from scenes import digits
from small import DATA, fitted, less, row, shared

STEPS, KEEP, NEAR, LAYERS = 250, 0.44, 0.02, ("body.0.0.weight", "body.1.0.weight", "body.2.0.weight")

CLAIM = Claim(
    id="S177",
    system="LAPP",
    claim="From-scratch CNN training with one learnable importance threshold per layer, a FLOPs constraint and light bypass branches removes filters "
    "progressively in early epochs, hits the FLOPs target with non-uniform ratios, keeping dense accuracy.",
    metric="accuracy of the net with 44% of its filters' weights minus that of the dense net, plus 0.02",
    margin=2.0,
    setting=Setting(
        method="lapp keep=0.44",
        baselines=("dense",),
        beside=("lapp keep=0.44 bypass=0", "wgsef keep=0.44 until=0.4"),
        test_samples=0,
    ),
)


def once(method: str, seed: int) -> dict[str, float]:
    """The net whose convolutions are trained under a method; the head is whole."""
    torch.manual_seed(seed)
    model = digits.Conv()
    plan: dict[str, Any] = {name: method if name in LAYERS else "dense" for name, _ in model.named_parameters()}
    return fitted(model, plan, seed, STEPS)


def shares(seed: int) -> list[float]:
    """Shares of the filters that stay in each layer, of a training of its own that is shorter."""
    from classifying import learn
    from modicum.train.trained import Trained
    from scenes.training import classes, drawn

    torch.manual_seed(seed)
    model, (x, y) = digits.Conv(), digits.pictures("train")
    plan = {name: CLAIM.setting.method if name in LAYERS else "dense" for name, _ in model.named_parameters()}
    with Trained(model, plan, seed=seed, total=100, scratch=True) as t:
        learn(t, ((x[places], y[places]) for places in drawn(len(x), 64, seed)), classes, 1e-2, 100)
        return [float(t.places[name].state["stays"].float().mean()) for name in LAYERS]


def main() -> None:
    kept, setting = shared(), CLAIM.setting
    rows = [
        row(method, [kept(f"filters {method}, seed {seed}", functools.partial(once, method, seed)) for seed in setting.seeds])
        for method in (setting.method, *setting.baselines, *setting.beside)
    ]
    uneven = [kept(f"shares of filters, seed {seed}", functools.partial(shares, seed)) for seed in setting.seeds]
    gains = [NEAR - gain for gain in less(rows[0], rows[1], "accuracy")]
    sizes = [digits.Conv().get_parameter(name) for name in LAYERS]
    most = round(KEEP * sum(map(torch.numel, sizes)))
    beside = sum(len(weight) + weight[0].numel() for weight in sizes)
    conditions = {
        "the share is met, with what the bypass adds": max(rows[0]["values"]) <= most + beside + 320,
        "layers keep other shares than each other": all(max(each) - min(each) > 0.05 for each in uneven),
    }
    figures = {"shares of the filters that stay": uneven, "loss against the same share of each layer": less(rows[0], rows[3])}
    show(result(CLAIM, kept, rows, gains, figures, conditions, DATA))


if __name__ == "__main__":
    main()
