"""S033, Compacter: adapters of sums of Kronecker products that share their rules, against adapters and full fine-tuning, on the decoder."""

from __future__ import annotations

from typing import Any

from adapting import adapted, before, data, means, row, shared
from common import Claim, Setting, result, show

CLAIM = Claim(
    id="S033",
    system="Compacter",
    claim="Adapters with weights = sum_i A_i kron (s_i t_i^T), A_i shared across layers and rank-one factors per layer; trainable fraction must be "
    "near 0.05% and GLUE score close to full fine-tuning on a small model.",
    metric="fall of held-out loss minus that under LoRA of rank 1, which trains a quarter as many numbers",
    margin=2.0,
    setting=Setting(method="compacter rank=4", baselines=("lora rank=1",), beside=("full", "lora rank=4"), test_samples=0),
)
LORA = (3e-3, 5e-3, 1e-2, 2e-2)
RATES = {"compacter rank=4": (3e-3, 1e-2, 3e-2, 1e-1), "lora rank=1": LORA, "full": (5e-4, 1e-3, 2e-3, 4e-3), "lora rank=4": LORA}


def main() -> None:
    kept, setting = shared(), CLAIM.setting
    untrained = kept("before", before)
    found: dict[str, list[dict[str, Any]]] = {plan: adapted(kept, plan, setting.seeds, rates) for plan, rates in RATES.items()}
    falls = {plan: [untrained - loss for loss in means(each, "loss")] for plan, each in found.items()}
    gains = [mine - other for mine, other in zip(falls[setting.method], falls["lora rank=1"])]
    trained = {plan: each[0]["trained"] for plan, each in found.items()}
    share = [mine / whole for mine, whole in zip(falls[setting.method], falls["full"])]
    equal = [mine - other for mine, other in zip(falls[setting.method], falls["lora rank=4"])]
    figures = {
        "held-out loss before training": untrained, "share of what full fine-tuning gains": share,
        "fall minus that under LoRA of rank 4, which trains nearly as many numbers": equal,
        "numbers trained, as a share of full fine-tuning's": trained[setting.method] / trained["full"],
    }  # fmt: skip
    conditions = {
        "fewer numbers than LoRA of rank 1": trained[setting.method] < trained["lora rank=1"],
        "at least nine tenths of what full fine-tuning gains": min(share) >= 0.9,
    }
    show(result(CLAIM, kept, [row(plan, each) for plan, each in found.items()], gains, figures, conditions, data(4)))


if __name__ == "__main__":
    main()
