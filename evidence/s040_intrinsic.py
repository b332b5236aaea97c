"""S040, intrinsic dimension: a network is trained in a random subspace of growing size, until it does nine tenths of what all its weights do.

Fully connected networks of one hidden layer, of four widths, on digits of 8 by 8 from a random start. A subspace moves all weights together by one
projection that a seed draws again; biases stay. How much nine tenths is: of the accuracy that training all weights gives.
"""

from __future__ import annotations

import functools
import statistics
from typing import Any

import torch
from torch import nn

from classifying import learn
from common import Claim, Setting, result, show
from kept import Kept
from modicum.train.trained import trained
from scenes.digits import accuracy, pictures
from scenes.training import classes, drawn, fitted

CLAIM = Claim(
    id="S040",
    system="Intrinsic dimension (random subspace training)",
    claim="Train theta0+P*theta_d with fixed random P (dense, sparse or Fastfood), sweep d, report d_int90; it must stay nearly constant over "
    "network widths and yield a checkpoint storing only seed and d numbers.",
    metric="by how many doublings the number of weights grows from the narrowest network to the widest, minus those by which d_int90 does",
    margin=2.0,
    setting=Setting(
        method="subspace projection=fastfood", baselines=("all weights",), beside=("subspace projection=dense",), test_samples=0
    ),
)
WIDTHS, SIZES = (25, 50, 100, 200), (30, 45, 65, 90, 120, 160, 220, 330)
SHARE, STEPS, BATCH, RATE, WHOLE_RATE = 0.9, 300, 64, 0.1, 1e-2
DATA = f"Networks of one hidden layer on 1000 digits of 8 by 8, judged on 497; {STEPS} updates of {BATCH} digits"


class Net(nn.Module):
    """64 inputs, one hidden layer, ten classes."""

    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of pictures (pictures, 3, 16, 16)."""
        return self.body(nn.functional.avg_pool2d(x[:, :1], 2).flatten(1))


def reached(width: int, seed: int, size: int, projection: str) -> dict[str, Any]:
    """Test accuracy of a subspace, or of all weights where size is 0, and the bytes of what is stored beside the seed's start."""
    torch.manual_seed(seed)
    model, (x, y) = Net(width), pictures("train")
    batches = ((x[places], y[places]) for places in drawn(len(x), BATCH, seed))
    if not size:
        fitted(model, batches, classes, WHOLE_RATE, STEPS)
        return {"accuracy": accuracy(model, *pictures("test")), "bytes": sum(each.nbytes for each in model.parameters()), "trained": 0}
    with trained(model, f"subspace size={size} projection={projection}", seed=seed, total=STEPS) as t:
        learn(t, batches, classes, RATE, STEPS)
        return {"accuracy": accuracy(model, *pictures("test")), "bytes": t.delta().nbytes, "trained": t.count}


def dimension(kept: Kept, width: int, seed: int, projection: str, whole: float) -> tuple[float, dict[str, float]]:
    """The smallest size that reaches its share, between two sizes by a line; and accuracy by size as far as was tried."""
    found: dict[str, float] = {}
    before = (0.0, 0.1)
    for size in SIZES:
        now = kept(f"{projection}, width {width}, size {size}, seed {seed}", functools.partial(reached, width, seed, size, projection))[
            "accuracy"
        ]
        found[f"d = {size}"] = now
        if now >= SHARE * whole:
            return before[0] + (size - before[0]) * (SHARE * whole - before[1]) / (now - before[1]), found
        before = (size, now)
    return 2.0 * SIZES[-1], found


def main() -> None:
    kept, setting = Kept.of(CLAIM.id), CLAIM.setting
    whole = {
        width: [
            kept(f"all, width {width}, seed {seed}", functools.partial(reached, width, seed, 0, ""))["accuracy"] for seed in setting.seeds
        ]
        for width in WIDTHS
    }
    sizes: dict[str, dict[int, list[float]]] = {}
    for projection in ("fastfood", "dense"):
        sizes[projection] = {
            width: [dimension(kept, width, seed, projection, whole[width][place])[0] for place, seed in enumerate(setting.seeds)]
            for width in WIDTHS
        }
    weights = {width: 64 * width + 10 * width for width in WIDTHS}
    rows = [
        {
            "option": f"subspace projection={projection}",
            **{f"d_int90, {weights[width]:,} weights": sizes[projection][width] for width in WIDTHS},
        }
        for projection in sizes
    ]
    rows.insert(
        1, {"option": "all weights", **{name: [weights[width]] * len(setting.seeds) for name, width in zip(list(rows[0])[1:], WIDTHS)}}
    )
    log = lambda values: torch.tensor(values, dtype=torch.float64).log2()
    first, last = WIDTHS[0], WIDTHS[-1]
    growth = (log(sizes["fastfood"][last]) - log(sizes["fastfood"][first])).tolist()
    wide = float(log([weights[last]]) - log([weights[first]]))
    some = kept(f"fastfood, width {last}, size {SIZES[0]}, seed 0", functools.partial(reached, last, 0, SIZES[0], "fastfood"))
    spread = [max(each) / min(each) for each in zip(*(sizes["fastfood"][width] for width in WIDTHS))]
    figures = {
        "accuracy of all weights": {f"width {width}": statistics.mean(whole[width]) for width in WIDTHS},
        "largest d_int90 of a seed by its smallest": spread,
        f"bytes of a checkpoint of {SIZES[0]} numbers, and of all weights": [some["bytes"], 4 * (weights[last] + last + 10)],
    }
    conditions = {
        "d_int90 changes by less than half over eight times the weights, in every seed": max(spread) < 1.5,
        "a checkpoint holds the numbers, and one scale and seed per weight": some["bytes"] == 4 * (SIZES[0] + 2),
    }
    show(result(CLAIM, kept, rows, [wide - each for each in growth], figures, conditions, DATA))


if __name__ == "__main__":
    main()
