"""S153, layer-adaptive allocation by a dynamic program: the distortions of layers add up, and what is chosen on their sums beats uniform.

The paper prunes convolutional networks and compares accuracy with uniform, ERK and LAMP pruning; here the levels are bits, the curves are
predicted divergences of each layer, and the baseline is uniform alone. Additivity is seen twice on test sequences: the divergence of three
bits everywhere against the sum of those that each layer causes alone, and that of random plans against the sum of their predictions.
"""

from __future__ import annotations

import statistics

from allocation import KEPT, WIDTH, Found, Scene, by_seed, compared, joined, pearson, told
from common import Claim, Setting, show
from kept import Kept
from modicum.allocate import ALLOCATORS
from modicum.allocate.random import spread
from modicum.core.plan import Picks

# Random plans of all sizes, and what the correlation with their sums must reach for every seed.
PLANS, CORRELATED = 8, 0.9
# How far the divergence of all layers together may be from the sum of those of each alone, as a factor.
ADDITIVE = 1.25
# Test sequences for both.
SEQUENCES = 4
CLAIM = Claim(
    id="S153",
    system="RD layer-adaptive pruning (DP)",
    claim="Builds per-layer output-distortion curves on calibration data, verifies additivity of joint distortion, dynamic programming picks "
    "per-layer levels for the global target, and quality beats the same level everywhere.",
    metric="mean KL of three bits everywhere minus the dynamic program's, at the same bytes; for every seed the KL of three bits everywhere "
    "must be within a factor of 1.25 of the sum of what each layer causes alone, and predicted sums of 8 random plans correlate above 0.9 with "
    "their real KL",
    margin=2.0,
    setting=Setting(method="dynamic_program", baselines=("uniform",), samples=8, tokens=128, test_samples=16, extra_bytes=0.001),
)


def main() -> None:
    kept = Kept.of(CLAIM.id)
    found = by_seed(kept, CLAIM.setting, seen)
    correlations, together = told(found, "correlation"), told(found, "together")
    figures = {
        "KL of all layers over the sum of each alone": together,
        "correlation of predicted sums and real KL": correlations,
        "median of real KL over predicted sums": told(found, "ratio"),
    }
    additive = all(1 / ADDITIVE <= ratio <= ADDITIVE for ratio in together)
    conditions = {"layers add up": additive, "predicted sums correlate with real KL": min(correlations) > CORRELATED}
    show(compared(CLAIM, kept, joined(found), figures, **conditions))


def seen(scene: Scene) -> Found:
    """The program's plan and the baseline's, and how well layers add up."""
    names, plans = (CLAIM.setting.method, *CLAIM.setting.baselines), spread(scene.table, PLANS, scene.seed)
    sums, real = [scene.table.harm(picks) for picks in plans], [diverges(scene, picks) for picks in plans]
    figures = {
        "correlation": pearson(sums, real),
        "ratio": statistics.median(b / a for a, b in zip(sums, real)),
        "together": diverges(scene, scene.everywhere(WIDTH)) / alone(scene),
    }
    return {name: scene.outcome(ALLOCATORS[name](scene.table, scene.limits())) for name in names}, figures


def alone(scene: Scene) -> float:
    """Sum of the divergences that each layer causes at the uniform width while all others are kept."""
    whole, narrow = scene.everywhere(KEPT), scene.everywhere(WIDTH)
    return sum(diverges(scene, whole | {site: narrow[site]}) for site in scene.table.choices)


def diverges(scene: Scene, picks: Picks) -> float:
    """Mean KL on the first test sequences."""
    return float(scene.test(picks, SEQUENCES).mean())


if __name__ == "__main__":
    main()
