"""S283, ETHER: reflections of weights, against LoRA, over two decades of rates around each method's best."""

from __future__ import annotations

import functools
import statistics
from typing import Any

from adapting import CHOOSING, DATA, STEPS, Plan, adapted, before, chosen, once, row, shared
from common import Claim, Setting, result, show
from kept import Kept
from modicum.train.trained import Trained

CLAIM = Claim(
    id="S283",
    system="ETHER / ETHER+",
    claim="Multiplies frozen weights by block-diagonal Householder reflections I-2uu^T (ETHER+: I-uu^T+vv^T, both sides); fine-tunes a small model "
    "with fewer parameters than LoRA over a wide learning-rate range and merges exactly.",
    metric="how far held-out loss is above its best, mean over rates from a tenth to ten times the best: LoRA's minus ETHER's",
    margin=2.0,
    setting=Setting(method="ether", baselines=("lora rank=8",), beside=("lora rank=1",), test_samples=0),
)
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
SPAN = (0.1, 0.3, 1.0, 3.0, 10.0)


def merged(t: Trained) -> float:
    """Largest difference of a merged weight from the weight in training."""
    delta = t.delta()
    return max(float((delta.weight(name, t.places[name].base.dense()) - t.weight(name).detach()).abs().max()) for name in t.places)


def spanned(kept: Kept, plan: Plan, rates: tuple[float, ...], seed: int) -> list[float]:
    """Mean held-out loss at each rate of the span, half the updates."""
    rate = chosen(kept, plan, rates)
    work = lambda factor: functools.partial(loss, plan, rate * factor, CHOOSING + seed)
    return [kept(f"{plan}, {factor:g} times {rate:g}, seed {seed}", work(factor)) for factor in SPAN]


def loss(plan: Plan, rate: float, seed: int) -> float:
    return statistics.mean(once(plan, rate, seed, STEPS // 2)["loss"])


def main() -> None:
    kept, setting = shared(), CLAIM.setting
    rates: dict[Plan, tuple[float, ...]] = {
        plan: RATES if plan == setting.method else RATES[:5] for plan in (setting.method, setting.baselines[0])
    }
    found: dict[Plan, list[dict[str, Any]]] = {plan: adapted(kept, plan, setting.seeds, rates[plan]) for plan in rates}
    small = adapted(kept, setting.beside[0], setting.seeds, RATES[:5])
    losses = {plan: [spanned(kept, plan, rates[plan], seed) for seed in setting.seeds] for plan in rates}
    above = {plan: [statistics.mean(each) - min(each) for each in losses[plan]] for plan in rates}
    gains = [b - a for a, b in zip(above[setting.method], above[setting.baselines[0]])]
    exact = adapted(kept, setting.method, setting.seeds[:1], rates[setting.method], seen=merged)[0]["seen"]
    untrained = kept("before", before)
    rows = [
        row(setting.method, found[setting.method]),
        row(setting.baselines[0], found[setting.baselines[0]]),
        row(setting.beside[0], small),
    ]
    middle = lambda plan: {f"{factor:g} x": statistics.mean(each[place] for each in losses[plan]) for place, factor in enumerate(SPAN)}
    figures = {
        "held-out loss before training": untrained, "largest difference of a merged weight": exact,
        **{f"mean loss of {plan} after half the updates, by multiples of its best rate": middle(plan) for plan in rates},
    }  # fmt: skip
    conditions = {
        "fewer numbers trained than by LoRA of rank 1": rows[0]["trained"][0] < rows[2]["trained"][0],
        "better than the base in every seed": max(rows[0]["loss"]) < untrained, "merged exactly": exact == 0,
    }  # fmt: skip
    show(result(CLAIM, kept, rows, gains, figures, conditions, DATA))


if __name__ == "__main__":
    main()
