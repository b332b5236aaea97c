"""S047, NTK-attention: an endless prefix in closed form, against a prefix of as many numbers and LoRA, on the decoder that learns prose."""

from __future__ import annotations

from typing import Any

import torch

from adapting import adapted, before, data, means, part, row, shared
from common import Claim, Setting, result, show
from modicum.train.trained import trained
from scenes.decoder import decoder
from scenes.domains import opened

CLAIM = Claim(
    id="S047",
    system="NTK-Attention",
    claim="Replace prefix keys/values by trainable Z (d x d) and k (d): numerator adds phi(Q)Z, denominator adds phi(Q)k; identity at zero init, and "
    "fine-tuning a small transformer must compete with LoRA and P-tuning.",
    metric="fall of held-out loss minus that under a trained prefix of as many numbers (P-tuning's kind)",
    margin=2.0,
    setting=Setting(method="ntk", baselines=("prefix tokens=16",), beside=("lora rank=2",), test_samples=0),
)
RATES = {"ntk": (3e-2, 1e-1, 3e-1), "prefix tokens=16": (3e-2, 1e-1, 3e-1), "lora rank=2": (3e-3, 1e-2, 2e-2)}


@torch.no_grad()
def moved() -> float:
    """Largest difference of a logit at the beginning."""
    model, ids = opened(decoder()), part("test", 4)
    plain = model(input_ids=ids).logits
    with trained(model, "ntk"):
        return float((model(input_ids=ids).logits - plain).abs().max())


def main() -> None:
    kept, setting = shared(), CLAIM.setting
    untrained, begun = kept("before", before), kept("ntk at its beginning", moved)
    found: dict[str, list[dict[str, Any]]] = {plan: adapted(kept, plan, setting.seeds, rates) for plan, rates in RATES.items()}
    falls = {plan: [untrained - loss for loss in means(each, "loss")] for plan, each in found.items()}
    gains = [mine - other for mine, other in zip(falls["ntk"], falls["prefix tokens=16"])]
    share = [mine / other for mine, other in zip(falls["ntk"], falls["lora rank=2"])]
    figures = {
        "held-out loss before training": untrained, "largest difference of a logit before the first update": begun,
        "share of what LoRA of rank 2 gains, with as many numbers": share,
    }  # fmt: skip
    conditions = {"the base to 1e-4 at the beginning": begun < 1e-4, "at least nine tenths of what LoRA gains": min(share) >= 0.9}
    show(result(CLAIM, kept, [row(plan, each) for plan, each in found.items()], gains, figures, conditions, data(3)))


if __name__ == "__main__":
    main()
