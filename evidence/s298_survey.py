"""S298, training by pruning and freezing: one method of each kind on one net, against a random mask that trains as many numbers."""

from __future__ import annotations

from common import Claim, Setting, result, show
from small import DATA, less, many, shared

KINDS = {
    "pruned before training": "snip keep=0.05", "lottery tickets": "tickets keep=0.05", "masks that move": "rigl keep=0.05 every=20",
    "random numbers frozen": "freezenet keep=0.05",
}  # fmt: skip

CLAIM = Claim(
    id="S298",
    system="Dimensionality reduced training survey",
    claim="Taxonomy: pruning at initialization, lottery tickets, dynamic sparse training, frozen random weights; modicum ships one of each (SNIP, "
    "IMP, RigL, random freezing) and reports trained-parameter count against accuracy on one CNN.",
    metric="test loss under a random mask minus the mean of the four kinds', each of which ends with one weight in twenty trained",
    margin=2.0,
    setting=Setting(
        method="snip keep=0.05",
        baselines=("random keep=0.05",),
        beside=("tickets keep=0.05", "rigl keep=0.05 every=20", "freezenet keep=0.05", "dense"),
        test_samples=0,
    ),
)


def main() -> None:
    kept, setting = shared(), CLAIM.setting
    rows = [many(kept, method) for method in (setting.method, *setting.baselines, *setting.beside)]
    kinds = [rows[0], *rows[2:-1]]
    gains = [sum(each) / len(kinds) for each in zip(*(less(kind, rows[1]) for kind in kinds))]
    figures = {name: less(kind, rows[1]) for name, kind in zip(KINDS, kinds)}
    conditions = {"as many numbers in the end": all(kind["values"] == rows[1]["values"] for kind in kinds)}
    show(result(CLAIM, kept, rows, gains, figures, conditions, DATA))


if __name__ == "__main__":
    main()
