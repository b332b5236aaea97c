"""S246, FreezeNet: random numbers that are not trained in the place of SNIP's zeros, at extreme rates."""

from __future__ import annotations

from common import Claim, Setting, result, show
from small import DATA, less, many, shared

CLAIM = Claim(
    id="S246",
    system="FreezeNet",
    claim="One backward pass scores |g*w| (SNIP); top weights train, others stay at seeded random values; the saved file holds seed, mask and "
    "trained weights, reloads exactly, and accuracy beats SNIP at extreme rates.",
    metric="test loss of SNIP minus FreezeNet's, one weight in a hundred being trained in both",
    margin=2.0,
    setting=Setting(
        method="freezenet keep=0.01", baselines=("snip keep=0.01",), beside=("freezenet keep=0.05", "snip keep=0.05", "dense"),
        test_samples=0,
    ),
)  # fmt: skip


def main() -> None:
    kept, setting = shared(), CLAIM.setting
    rows = [many(kept, method) for method in (setting.method, *setting.baselines, *setting.beside)]
    conditions = {"as many numbers and bytes": rows[0]["values"] == rows[1]["values"] and rows[0]["bytes"] == rows[1]["bytes"]}
    figures = {"at one weight in twenty": less(rows[2], rows[3])}
    show(result(CLAIM, kept, rows, less(rows[0], rows[1]), figures, conditions, DATA))


if __name__ == "__main__":
    main()
