"""S086, SLTrain: low-rank and sparse layers from nothing, against low-rank ones of as many numbers and against full ones."""

from __future__ import annotations

import statistics

from common import Claim, Setting, result, show
from kept import Kept
from scratch import DATA, reached, row

CLAIM = Claim(
    id="S086",
    system="SLTrain",
    claim="Linear layer BA+S with S on a fixed random support storing only values and indices; pretraining a tiny LLaMA must give near-full-rank "
    "perplexity, better than pure low-rank at about the same memory.",
    metric="held-out loss of low-rank layers minus that of low-rank and sparse ones with no more numbers",
    margin=2.0,
    setting=Setting(method="sltrain rank=32 keep=0.048", baselines=("sltrain rank=36 keep=0",), beside=("dense",), test_samples=0),
)
WIDTH, NEAR = 128, 0.05


def main() -> None:
    kept, setting = Kept.of("shared-scratch"), CLAIM.setting
    rows = [row(option, reached(kept, option, WIDTH, setting.seeds)) for option in (setting.method, *setting.baselines, *setting.beside)]
    gains = [b - a for a, b in zip(rows[0]["loss"], rows[1]["loss"])]
    behind = [a - b for a, b in zip(rows[0]["loss"], rows[2]["loss"])]
    conditions = {
        "no more numbers than the low-rank layers": rows[0]["trained"][0] <= rows[1]["trained"][0],
        f"within {NEAR:g} nats of full layers": statistics.mean(behind) <= NEAR,
    }
    show(result(CLAIM, kept, rows, gains, {"held-out loss above that of full layers": behind}, conditions, DATA))


if __name__ == "__main__":
    main()
