"""S178, BitNet b1.58 on small networks: ternary decoders of twice the width against full ones, ternary convolutions against full ones."""

from __future__ import annotations

import functools
import statistics
from typing import Any

import torch

from classifying import learn
from common import Claim, Setting, result, show
from kept import Kept
from modicum.train.trained import trained
from scenes.digits import Conv, accuracy, pictures
from scenes.training import classes, drawn
from scratch import DATA, reached, row

CLAIM = Claim(
    id="S178",
    system="BitNet b1.58 Reloaded",
    claim="QAT with ternary weights scaled by median or mean, 8-bit absmax activations and STE on 100K-parameter-class LM and CNN; doubling hidden "
    "size recovers full-precision LM loss, vision matches at the same size.",
    metric="held-out loss of the full decoder of width 64 minus that of the ternary one of width 128, which has less than half of its bytes",
    margin=2.0,
    setting=Setting(
        method="bitnet scale=median, width 128",
        baselines=("dense, width 64",),
        beside=("bitnet scale=mean, width 128", "bitnet scale=median, width 64"),
        test_samples=0,
    ),
)
RATES, UPDATES, ALLOWED = (3e-3, 1e-2, 3e-2), 400, 0.01


def vision(option: str, rate: float, seed: int, part: str) -> float:
    """Accuracy of a convolutional net on digits, from nothing; the first convolution and the head are full in both."""
    torch.manual_seed(seed)
    model, (x, y) = Conv(), pictures("train")
    plan = {"body.[12].0.weight": option, "body.0.0.weight": "dense", "head.*": "dense", "body.*.1.*": "dense"}
    with trained(model, plan, seed=seed, total=UPDATES) as t:
        model.train()
        learn(t, ((x[places], y[places]) for places in drawn(len(x), 64, seed)), classes, rate, UPDATES)
        return accuracy(model.eval(), *pictures(part))


def seen(kept: Kept, option: str, seeds: tuple[int, ...]) -> list[float]:
    """Test accuracies at the rate that validation prefers."""
    tried = {rate: kept(f"vision, {option}, rate {rate:g}", functools.partial(vision, option, rate, 1000, "validation")) for rate in RATES}
    rate = max(tried, key=tried.__getitem__)
    return [kept(f"vision, {option}, rate {rate:g}, seed {seed}", functools.partial(vision, option, rate, seed, "test")) for seed in seeds]


def main() -> None:
    kept, setting = Kept.of("shared-scratch"), CLAIM.setting
    rows: list[dict[str, Any]] = []
    for said in (setting.method, *setting.baselines, *setting.beside):
        option, _, width = said.partition(", width ")
        rows.append(row(said, reached(kept, option, int(width), setting.seeds)))
    gains = [b - a for a, b in zip(rows[0]["loss"], rows[1]["loss"])]
    full, ternary = (seen(kept, option, setting.seeds) for option in ("dense", "bitnet scale=median inputs_in=float"))
    figures = {"accuracy of full convolutions": full, "of ternary ones": ternary}
    conditions = {
        "fewer bytes": rows[0]["bytes of the layers"][0] < rows[1]["bytes of the layers"][0],
        "ternary convolutions within a point of full ones": statistics.mean(full) - statistics.mean(ternary) <= ALLOWED,
    }
    show(result(CLAIM, kept, rows, gains, figures, conditions, DATA))


if __name__ == "__main__":
    main()
