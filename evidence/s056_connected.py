"""S056, connected adapters: what one hands on to the next, against the same adapters apart, on the decoder that learns prose."""

from __future__ import annotations

import statistics
from typing import Any

from adapting import STEPS, adapted, before, data, row, shared
from common import Claim, Setting, result, show

CLAIM = Claim(
    id="S056",
    system="Connected PET via aside modules (IR)",
    claim="Add modules alongside the backbone that link the scattered adapters into one gradient path; a small re-ranker under 1% trainable "
    "parameters must converge faster and with lower seed variance than unconnected adapters.",
    metric="mean loss over the first half of the updates under unconnected adapters minus that under connected ones",
    margin=2.0,
    setting=Setting(method="connected rank=4", baselines=("bottleneck rank=4",), seeds=(0, 1, 2, 3, 4), test_samples=0),
)
RATES, HALF = (3e-3, 1e-2, 3e-2), STEPS // 2


def main() -> None:
    kept, setting = shared(), CLAIM.setting
    untrained = kept("before", before)
    plans = (setting.method, *setting.baselines)
    found: dict[str, list[dict[str, Any]]] = {plan: adapted(kept, plan, setting.seeds, RATES) for plan in plans}
    early = {plan: [statistics.mean(one["curve"][:HALF]) for one in each] for plan, each in found.items()}
    gains = [other - mine for mine, other in zip(early[plans[0]], early[plans[1]])]
    ends = {plan: [statistics.mean(one["loss"]) for one in each] for plan, each in found.items()}
    spread = {plan: statistics.stdev(losses) for plan, losses in ends.items()}
    figures = {"held-out loss before training": untrained, "standard deviation of held-out loss over seeds": spread}
    conditions = {
        "lower variance over seeds": spread[plans[0]] < spread[plans[1]],
        "held-out loss no higher in the mean": statistics.mean(ends[plans[0]]) <= statistics.mean(ends[plans[1]]),
    }
    show(result(CLAIM, kept, [row(plan, each) for plan, each in found.items()], gains, figures, conditions, data(3)))


if __name__ == "__main__":
    main()
