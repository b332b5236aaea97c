"""S029, APET: structures of what is trained, and how the gap between them falls as models grow.

Two decoders, each trained on as much text; a tenth of the weights of their blocks is trained as entries drawn at random, as thin factors and as
blocks, and all of them. What a structure reaches is told as a share of what full fine-tuning gains.
"""

from __future__ import annotations

import functools
import statistics
from typing import Any

from adapting import Plan, adapted, before, data, means, shared
from common import Claim, Setting, result, show
from kept import Kept

CLAIM = Claim(
    id="S029",
    system="APET",
    claim="Train arbitrary randomly chosen weight subsets of any size and structure as the delta; over two or three model scales, the gap between "
    "structures and to full fine-tuning must shrink; report the trainable-count threshold.",
    metric="gap between the best and the worst of three structures at a tenth of the weights, as a share of what full fine-tuning gains: that of the "
    "narrowest decoder minus that of the widest",
    margin=2.0,
    setting=Setting(method="width 128", baselines=("width 32",), seeds=(0, 1, 2), test_samples=0),
)
WIDTHS = (128, 32)
RATES = (5e-3, 1e-2, 2e-2)
# Of the threshold: shares of entries, and rates that each is tried at.
SHARES = {0.0066: (1e-2, 3e-2, 1e-1), 0.012: (1e-2, 3e-2, 1e-1), 0.048: (1e-2, 3e-2, 1e-1), 0.19: (5e-3, 1e-2, 2e-2)}
ENOUGH = 0.9


def structures(width: int) -> dict[str, str]:
    """Options that each train about a tenth of the weights of the blocks: of thin factors, rank is what a tenth comes to."""
    rank = round(0.1 * (4 * width * width + 9 * width * width) / (4 * 2 * width + 3 * 4 * width))
    size = max(each for each in range(1, width + 1) if width % each == 0 and each <= 0.1 * 13 * width / (4 + 3 + 3 + 1))
    return {"entries": "apet keep=0.1", "thin factors": f"lora rank={rank}", "blocks": f"bone rank={size}"}


def scale(kept: Kept, width: int, seeds: tuple[int, ...]) -> dict[str, Any]:
    """What each structure, and all weights, reach at a width: held-out loss, numbers trained, share of the whole gain."""
    untrained = kept(f"before, width {width}", functools.partial(before, width))
    plans: dict[str, Plan] = {"all weights": "shift", **structures(width)}
    rates = {name: (5e-4, 1e-3, 2e-3) if name == "all weights" else RATES for name in plans}
    found = {name: adapted(kept, plan, seeds, rates[name], width) for name, plan in plans.items()}
    whole = means(found["all weights"], "loss")
    share = {name: [(untrained - a) / (untrained - b) for a, b in zip(means(found[name], "loss"), whole)] for name in list(plans)[1:]}
    return {"untrained": untrained, "whole": whole, "share": share, "trained": {name: each[0]["trained"] for name, each in found.items()}}


def row(width: int, found: dict[str, Any], seeds: int) -> dict[str, Any]:
    by_seed = [[each[seed] for each in found["share"].values()] for seed in range(seeds)]
    return {
        "option": f"width {width}",
        "gap between structures": [max(each) - min(each) for each in by_seed],
        "gap to all weights": [1 - statistics.mean(each) for each in by_seed],
        **{f"share, {name}": values for name, values in found["share"].items()},
    }


def main() -> None:
    kept, seeds = shared(), CLAIM.setting.seeds
    found = {width: scale(kept, width, seeds) for width in WIDTHS}
    rows = [row(width, found[width], len(seeds)) for width in WIDTHS]
    gap = "gap between structures"
    wide, narrow = rows[0], rows[1]
    gains = [b - a for a, b in zip(wide[gap], narrow[gap])]
    closing = statistics.mean(wide["gap to all weights"]) < statistics.mean(narrow["gap to all weights"])
    reached = {}
    for share, rates in SHARES.items():
        losses = means(adapted(kept, f"apet keep={share:g}", seeds, rates), "loss")
        reached[share] = statistics.mean(
            (found[128]["untrained"] - a) / (found[128]["untrained"] - b) for a, b in zip(losses, found[128]["whole"])
        )
    reached[0.1] = statistics.mean(found[128]["share"]["entries"])
    enough = [share for share in sorted(reached) if reached[share] >= ENOUGH]
    figures = {
        "numbers trained": {f"width {width}": found[width]["trained"] for width in sorted(WIDTHS)},
        "held-out loss before": {f"width {width}": found[width]["untrained"] for width in sorted(WIDTHS)},
        "share of the whole gain by share of entries trained, width 128": {f"{share:g}": reached[share] for share in sorted(reached)},
        f"smallest share that reaches {ENOUGH:g} of the whole gain": enough[0] if enough else "none of them",
    }
    show(result(CLAIM, kept, rows, gains, figures, {"the gap to all weights falls too": closing}, data(3)))


if __name__ == "__main__":
    main()
