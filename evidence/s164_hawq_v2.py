"""S164, HAWQ-V2: mean Hessian trace times squared change of the weights, against the order of top eigenvalues and against uniform bits.

The paper estimates traces by Hutchinson's method on image models and fine-tunes what it chose; here traces are those of the Fisher information,
by labels drawn from the model, the point of the Pareto frontier at each budget is found by the integer program, and nothing is tuned.
Top eigenvalues come from six power iterations on 32 tokens, so the baseline made of them is rough. One budget sees one point of a frontier, and
by chance either may be ahead there: five budgets count, each by the ratio of the divergences, since those of the smallest would drown the rest.
"""

from __future__ import annotations

import math
import statistics

from allocation import WIDTH, Found, Scene, by_seed, joined, no_larger, result, row, show
from common import Claim, Setting
from kept import Kept
from modicum.allocate import ALLOCATORS
from modicum.core.plan import Limits

BUDGETS = (2.25, 2.5, 3.0, 3.5, 4.0)
CLAIM = Claim(
    id="S164",
    system="HAWQ-V2",
    claim="Each layer's average Hessian trace; Omega = sum of trace times ||Q(W)-W||^2 ranks bit settings; the Pareto frontier under a size budget "
    "picks bits automatically, beating uniform and top-eigenvalue allocation.",
    metric="logarithm of the KL of the better baseline, uniform or top eigenvalue, over HAWQ-V2's at the same bytes, without fine-tuning, mean "
    "over the bytes of 2.25, 2.5, 3, 3.5 and 4 bits everywhere",
    margin=2.0,
    setting=Setting(method="hawq_v2", baselines=("uniform", "hawq"), samples=8, tokens=128, test_samples=16, extra_bytes=0.001),
)
NAMES = (CLAIM.setting.method, *CLAIM.setting.baselines)


def limits(scene: Scene, bits: float) -> Limits:
    """Bytes between those of the plans of two whole widths."""
    below, above = (scene.limits(width)["bytes"] for width in (math.floor(bits), math.ceil(bits)))
    return {"bytes": below + (bits - math.floor(bits)) * (above - below)}


def seen(scene: Scene) -> Found:
    """What each plan is at each budget."""
    plans = {at(name, bits): ALLOCATORS[name](scene.table, limits(scene, bits)) for bits in BUDGETS for name in NAMES}
    return {name: scene.outcome(picks) for name, picks in plans.items()}, {}


def at(name: str, bits: float) -> str:
    """What stands for an allocator at a budget."""
    return f"{name} at {bits:g} bits"


def main() -> None:
    kept = Kept.of(CLAIM.id)
    outcomes = joined(by_seed(kept, CLAIM.setting, seen, curved=True))
    found = {bits: {name: outcomes[at(name, bits)] for name in NAMES} for bits in BUDGETS}
    kl = {bits: {name: [outcome.kl for outcome in outcomes] for name, outcomes in options.items()} for bits, options in found.items()}
    method, *baselines = NAMES
    gains = lambda name: [
        statistics.mean(math.log(kl[bits][name][place] / kl[bits][method][place]) for bits in BUDGETS)
        for place in range(len(CLAIM.setting.seeds))
    ]
    baselines.sort(key=lambda name: statistics.mean(gains(name)))
    rows = [row(name, found[WIDTH][name]) for name in (method, *baselines)]
    by_budget = {
        f"mean KL at {bits:g} bits": {name: statistics.mean(values) for name, values in options.items()} for bits, options in kl.items()
    }
    within = all(no_larger(CLAIM, [row(name, found[bits][name]) for name in (method, baselines[0])]) for bits in BUDGETS)
    show(result(CLAIM, kept, rows, gains(baselines[0]), by_budget, {"no more bytes than allowed at any budget": within}))


if __name__ == "__main__":
    main()
