"""S113, scaling in the average number of parameters: one law for dense decoders and for those that are pruned while they are trained."""

from __future__ import annotations

import functools
import statistics
from typing import Any

from common import Claim, Setting, result, show
from kept import Kept
from modicum.numerics.scaling import average, fitted, left_out
from scratch import once

STEPS, RATE, KEEP, WIDTH, NEAR = 300, 4e-3, 0.25, 64, 0.02
DENSE, PRUNED = (24, 32, 48, 64), ((0.0, 0.25), (0.25, 0.75), (0.5, 1.0))

CLAIM = Claim(
    id="S113",
    system="Average-parameter-count scaling law",
    claim="Pretrain tiny LMs dense and with magnitude pruning at several start/end points; 25%-75% must be near-best, and one Chinchilla fit in "
    "average parameter count predict sparse and dense losses better than final count.",
    metric="error of the law in final numbers of parameters minus that of the law in average ones, each on trainings that it was not fitted to",
    margin=2.0,
    setting=Setting(method="average", baselines=("final",), test_samples=0),
)
DATA = f"Decoders of four layers learn Python's library in {STEPS} updates of 8 windows of 128 tokens; layers of blocks are counted"


def size(width: int) -> int:
    """Numbers in the blocks' layers."""
    return 4 * (4 * width * width + 3 * 3 * width * width)


def trained(option: str, width: int, seed: int) -> float:
    """The held-out loss."""
    return statistics.mean(once(option, width, RATE, seed, STEPS, "test")["loss"])


def main() -> None:
    kept, setting = Kept.of(CLAIM.id), CLAIM.setting
    errors: dict[str, list[float]] = {"average": [], "final": []}
    losses: dict[str, list[float]] = {}
    for seed in setting.seeds:
        sizes: dict[str, list[float]] = {"average": [], "final": []}
        found = []
        for width in DENSE:
            found.append(kept(f"dense, width {width}, seed {seed}", functools.partial(trained, "dense", width, seed)))
            losses.setdefault(f"dense, width {width}", []).append(found[-1])
            for name in sizes:
                sizes[name].append(size(width))
        for since, until in PRUNED:
            option = f"gradual keep={KEEP} since={since} until={until} every=5"
            found.append(kept(f"{option}, seed {seed}", functools.partial(trained, option, WIDTH, seed)))
            losses.setdefault(f"pruned from {since} to {until}", []).append(found[-1])
            sizes["average"].append(average(size(WIDTH), KEEP, since, until))
            sizes["final"].append(KEEP * size(WIDTH))
        for name in sizes:
            errors[name].append(left_out(sizes[name], found))
    law = fitted(sizes["average"], found)
    rows: list[dict[str, Any]] = [{"option": name, "error, nats": errors[name]} for name in ("average", "final")]
    gains = [b - a for a, b in zip(errors["average"], errors["final"])]
    means = {name: statistics.mean(each) for name, each in losses.items() if name.startswith("pruned")}
    conditions = {f"from 25 % to 75 % is within {NEAR:g} nats of the best": means["pruned from 0.25 to 0.75"] <= min(means.values()) + NEAR}
    figures: dict[str, Any] = {
        **losses,
        "power of the last seed's law": law.power,
        "its floor": law.floor,
        "its loss at a million": law(1e6),
    }
    show(result(CLAIM, kept, rows, gains, figures, conditions, DATA))


if __name__ == "__main__":
    main()
