"""S067, stable random parameter sharing: one array a twentieth of the size, against masks that leave as many numbers."""

from __future__ import annotations

from common import Claim, Setting, result, show
from small import DATA, less, many, shared

STEPS, KEEP = 250, 0.05

CLAIM = Claim(
    id="S067",
    system="STABLE-RPS",
    claim="Map all weights into one shared array by chunked signed hashing, with stable gradient scaling and an exact identity at 1x; a small ResNet "
    "at 10-100x compression must beat SNIP, SynFlow, GraSP and magnitude at equal memory.",
    metric="test loss of the best mask minus that of the shared array, both of one number in twenty",
    margin=2.0,
    setting=Setting(
        method="stable_rps keep=0.05",
        baselines=(
            "snip keep=0.05 layers=uniform",
            "synflow keep=0.05 layers=uniform",
            "grasp keep=0.05 layers=uniform",
            "gradual keep=0.05 layers=uniform",
        ),
        beside=("rigl keep=0.05 every=20", "stable_rps keep=1", "dense"),
        test_samples=0,
    ),
)


def main() -> None:
    kept, setting = shared(), CLAIM.setting
    mine, *masks = [many(kept, method, steps=STEPS) for method in (setting.method, *setting.baselines, *setting.beside)]
    best = min(masks[:4], key=lambda row: sum(row["loss"]))
    others = [best, *(row for row in masks if row is not best)]
    conditions = {
        "no more numbers": mine["values"][0] <= best["values"][0] + 4,
        "as good as dense at the full size": sum(less(masks[5], masks[6])) > -0.15,
    }
    show(result(CLAIM, kept, [mine, *others], less(mine, best), {"against RigL": less(mine, masks[4])}, conditions, DATA))


if __name__ == "__main__":
    main()
