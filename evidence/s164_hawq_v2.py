"""S164, HAWQ-V2: mean Hessian trace times squared change of the weights, against the order of top eigenvalues and against uniform bits.

The paper estimates traces by Hutchinson's method on image models and fine-tunes what it chose; here traces are those of the Fisher information,
by labels drawn from the model, the point of the Pareto frontier at each budget is found by the integer program, and nothing is tuned.
Top eigenvalues come from six power iterations on 32 tokens, so the baseline made of them is rough. One budget sees one point of a frontier, and
by chance either may be ahead there: five budgets count on two models, each by the ratio of the divergences, since those of the smallest would
drown the rest. Plans cannot be cut to the byte: the baselines may spend the budget, and the method what the thriftier of them spent.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from allocation import WIDTH, Found, Outcome, Scene, by_seed, no_larger, row
from common import Claim, Setting, result, show, verdict
from kept import Kept
from modicum.allocate import ALLOCATORS
from modicum.core.plan import Limits
from modicum.numerics.interval import interval
from scenes.second import second

BUDGETS = (2.25, 2.5, 3.0, 3.5, 4.0)
CLAIM = Claim(
    id="S164",
    system="HAWQ-V2",
    claim="Each layer's average Hessian trace; Omega = sum of trace times ||Q(W)-W||^2 ranks bit settings; the Pareto frontier under a size budget "
    "picks bits automatically, beating uniform and top-eigenvalue allocation.",
    metric="logarithm of the KL of the better baseline, uniform or top eigenvalue, over HAWQ-V2's at no more bytes, without fine-tuning, mean "
    "over the bytes of 2.25, 2.5, 3, 3.5 and 4 bits everywhere and over two models",
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
    outcomes = {}
    for bits in BUDGETS:
        within = limits(scene, bits)
        picks = {name: ALLOCATORS[name](scene.table, within) for name in CLAIM.setting.baselines}
        spent = {"bytes": min(scene.table.cost(plan) for plan in picks.values())}
        picks[CLAIM.setting.method] = ALLOCATORS[CLAIM.setting.method](scene.table, spent)
        outcomes |= {at(name, bits): scene.outcome(plan) for name, plan in picks.items()}
    return outcomes, {}


def at(name: str, bits: float) -> str:
    """What stands for an allocator at a budget."""
    return f"{name} at {bits:g} bits"


def ratios(found: Sequence[Found], name: str) -> list[float]:
    """Logarithm of a baseline's KL over the method's, the mean over budgets, seed by seed."""
    ratio = lambda outcomes, bits: math.log(outcomes[at(name, bits)].kl / outcomes[at(CLAIM.setting.method, bits)].kl)
    return [statistics.mean(ratio(outcomes, bits) for bits in BUDGETS) for outcomes, _ in found]


def paired(found: Sequence[Found], name: str, bits: float) -> list[float]:
    """A baseline's KL minus the method's, by test sequence of all seeds: the mean, and the ends of its interval."""
    differ = lambda outcomes: outcomes[at(name, bits)].divergence - outcomes[at(CLAIM.setting.method, bits)].divergence
    return [float(value) for value in interval([value for outcomes, _ in found for value in differ(outcomes).tolist()])]


def by_model(model: str, found: Sequence[Found], best: str) -> dict[str, Any]:
    """Figures of one model."""
    gains = verdict(ratios(found, best), CLAIM.margin)
    figures: dict[str, Any] = {f"{model}, mean log ratio to {best} and its standard error": [gains["mean"], gains["standard_error"]]}
    for bits in BUDGETS:
        kl = {name: statistics.mean(outcomes[at(name, bits)].kl for outcomes, _ in found) for name in NAMES}
        figures[f"{model} at {bits:g} bits, mean KL"] = kl
        figures[f"{model} at {bits:g} bits, {best} minus {CLAIM.setting.method} and its interval over sequences"] = paired(
            found, best, bits
        )
    return figures


def rows(found: Sequence[Found], names: Sequence[str], bits: float) -> list[dict[str, Any]]:
    """Options of one model at one budget."""
    picked: list[list[Outcome]] = [[outcomes[at(name, bits)] for outcomes, _ in found] for name in names]
    return [row(name, outcomes) for name, outcomes in zip(names, picked)]


def main() -> None:
    kept, made = Kept.of(CLAIM.id), second()
    found = {model: by_seed(kept, CLAIM.setting, seen, curved=True, model=model) for model in ("demo", str(made.folder))}
    kept.seconds += made.seconds
    gains = {name: [statistics.mean(each) for each in zip(*(ratios(seeds, name) for seeds in found.values()))] for name in NAMES[1:]}
    best, *others = sorted(NAMES[1:], key=lambda name: statistics.mean(gains[name]))
    within = all(no_larger(CLAIM, rows(seeds, (NAMES[0], best), bits)) for seeds in found.values() for bits in BUDGETS)
    figures = {"seconds of training the second model": made.seconds}
    for model, seeds in found.items():
        figures |= by_model("demo" if model == "demo" else "second model", seeds, best)
    conditions = {"no more bytes than allowed at any budget": within}
    show(result(CLAIM, kept, rows(found["demo"], (NAMES[0], best, *others), WIDTH), gains[best], figures, conditions))


if __name__ == "__main__":
    main()
