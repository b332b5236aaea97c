"""S190, intrinsic dimension of fine-tuning: the decoder learns prose in a random subspace of growing size, with a trained scale of each weight.

The paper fine-tunes BERT and counts accuracy; here it is the fall of held-out loss, of which all weights give the whole. Beside the trained decoder
stands one of the same shape that never was: the intrinsic dimension of learning from nothing is another, and larger.
"""

from __future__ import annotations

import functools
import itertools
import math
import statistics
from typing import Any

from adapting import DATA, adapted, before, means, shared
from common import Claim, Setting, result, show
from kept import Kept

CLAIM = Claim(
    id="S190",
    system="Intrinsic dimension of fine-tuning (SAID)",
    claim="Fine-tunes a small BERT through a Fastfood random projection of d parameters plus layer-wise scales for growing d, reports d90 reaching "
    "90% of full accuracy, and the compression bound depending on d only.",
    metric="share of what training all weights of the blocks gains on held-out prose that a subspace of 16,000 numbers does, minus nine tenths",
    margin=2.0,
    setting=Setting(method="subspace size=16000 scales=trained", baselines=("shift",), beside=("subspace size=16000",), test_samples=0),
)
SIZES, SHARE = (1000, 4000, 16000), 0.9
RATES, WHOLE = (1e-2, 3e-2, 1e-1), (5e-4, 1e-3, 2e-3)
# Of the bound: how sure, and bits of a stored number.
SURE, BITS = 0.95, 16


def gained(kept: Kept, plan: str, seeds: tuple[int, ...], untrained: float, whole: list[float]) -> tuple[list[float], list[dict[str, Any]]]:
    """Share of the whole fall of the loss, by seed."""
    found = adapted(kept, plan, seeds, RATES)
    return [(untrained - loss) / (untrained - best) for loss, best in zip(means(found, "loss"), whole)], found


def bound(numbers: int, samples: int) -> float:
    """By how much error on what was not seen may exceed that on samples, at most, for a model told by so many numbers: Occam's bound."""
    return math.sqrt((numbers * BITS * math.log(2) + math.log(1 / (1 - SURE))) / (2 * samples))


def main() -> None:
    kept, setting = shared(), CLAIM.setting
    untrained = kept("before", functools.partial(before))
    all_weights = adapted(kept, "shift", setting.seeds, WHOLE)
    whole = means(all_weights, "loss")
    by_size = {size: gained(kept, f"subspace size={size} scales=trained", setting.seeds, untrained, whole) for size in SIZES}
    plain = gained(kept, setting.beside[0], setting.seeds, untrained, whole)
    made = lambda option, share, found: {
        "option": option, "share of the whole gain": share, "loss": means(found, "loss"), "trained": [each["trained"] for each in found],
        "bytes stored": [each["bytes"] for each in found],
    }  # fmt: skip
    last = SIZES[-1]
    rows = [made(setting.method, *by_size[last]), made("shift", [1.0] * len(whole), all_weights), made(setting.beside[0], *plain)]
    rows += [made(f"subspace size={size} scales=trained", *by_size[size]) for size in SIZES[:-1]]
    enough = [size for size in SIZES if statistics.mean(by_size[size][0]) >= SHARE]
    figures = {
        "d90": enough[0] if enough else f"above {last}",
        "bound on the excess of an error of half of 10^6 samples, by d alone": {f"d = {size}": bound(size, 10**6) for size in SIZES},
        "the same of all weights": bound(all_weights[0]["trained"], 10**6),
    }
    grows = all(statistics.mean(by_size[a][0]) < statistics.mean(by_size[b][0]) for a, b in itertools.pairwise(SIZES))
    conditions = {
        "more numbers gain more": grows,
        "scales gain more than none": statistics.mean(by_size[last][0]) > statistics.mean(plain[0]),
    }
    show(result(CLAIM, kept, rows, [share - SHARE for share in by_size[last][0]], figures, conditions, DATA))


if __name__ == "__main__":
    main()
