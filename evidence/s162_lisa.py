"""S162, LISA: one block at a time, with table and norms, against LoRA, on the decoder that learns prose."""

from __future__ import annotations

import statistics
from typing import Any

from adapting import Plan, adapted, before, data, means, row, shared
from common import Claim, Setting, result, show
from modicum.train.trained import Trained

CLAIM = Claim(
    id="S162",
    system="LISA",
    claim="Every K steps samples gamma middle layers to unfreeze (embedding and head always on), keeping AdamW state for active layers only; "
    "fine-tunes a small LM at LoRA-like peak memory with loss at or below LoRA.",
    metric="held-out loss under LoRA minus that under LISA",
    margin=2.0,
    setting=Setting(method="full | lisa layers=1 every=5", baselines=("lora rank=16",), beside=("full",), test_samples=0),
)
LISA: Plan = {"*": "full | lisa layers=1 every=5"}
PLANS: dict[str, tuple[Plan, tuple[float, ...]]] = {
    "lisa": (LISA, (1e-3, 2e-3, 4e-3, 8e-3)), "lora rank=16": ("lora rank=16", (2e-3, 5e-3, 1e-2, 2e-2)),
    "full": ({"*": "full"}, (5e-4, 1e-3, 2e-3, 4e-3)),
}  # fmt: skip
MORE = 1.25


def active(t: Trained) -> int:
    """Numbers that train at a time."""
    return sum(parameter.numel() for parameter in t.parameters() if parameter.requires_grad)


def main() -> None:
    kept, setting = shared(), CLAIM.setting
    untrained = kept("before", before)
    found: dict[str, list[dict[str, Any]]] = {
        name: adapted(kept, plan, setting.seeds, rates, seen=active) for name, (plan, rates) in PLANS.items()
    }
    losses = {name: means(each, "loss") for name, each in found.items()}
    gains = [other - mine for mine, other in zip(losses["lisa"], losses["lora rank=16"])]
    taken = {name: statistics.mean(16 * one["seen"] + one["memory"] - 16 * one["trained"] for one in each) for name, each in found.items()}
    figures = {
        "held-out loss before training": untrained, "numbers that train at a time": {name: each[0]["seen"] for name, each in found.items()},
        "bytes that training keeps, of what trains at a time": taken,
    }  # fmt: skip
    conditions = {
        f"at most {MORE:g} of the bytes that LoRA keeps": taken["lisa"] <= MORE * taken["lora rank=16"],
        "fewer bytes than full fine-tuning": taken["lisa"] < taken["full"],
    }
    rows = [row(plan, found[name]) for name, (plan, _) in PLANS.items()]
    show(result(CLAIM, kept, rows, gains, figures, conditions, data(4)))


if __name__ == "__main__":
    main()
