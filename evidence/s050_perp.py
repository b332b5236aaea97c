"""S050, PERP: after pruning by magnitude, norms, biases and a product under the mask, against all that the mask left retrained.

The second model has layer norms and biases. Each is healed by `modicum fit --heal`: trained to answer as the unpruned model, where the paper learns
the next token. Full retraining trains every value that the mask left, norms and biases too; tables and the head stay in both. Rates were chosen on
validation windows of another seed.
"""

from __future__ import annotations

import functools
import math
import statistics
from typing import Any

import torch

from common import Claim, Setting, result, show
from kept import Kept
from scenes.second import second

UPDATES, BATCH, RATES, CHOOSING = 60, 4, (3e-3, 1e-2), 1000
SHARE = 0.8
PRUNED, PERP, FULL, VECTORS = "magnitude keep=0.2", "norms, held rank=2", "norms, held", "norms"
CLAIM = Claim(
    id="S050",
    system="PERP",
    claim="After magnitude-pruning a small OPT/GPT-2, retrain only biases, LayerNorms and mask-mergeable LoRA; perplexity must come close to full "
    "retraining and the merged weights must keep the sparsity mask exactly.",
    metric=f"what PERP takes back of the log perplexity that pruning cost, less {SHARE:g} of what full retraining takes back",
    margin=2.0,
    setting=Setting(
        method=f"{PRUNED}, heal {PERP}", baselines=(f"{PRUNED}, heal {FULL}",), samples=128, tokens=64, beside=(f"heal {VECTORS}",)
    ),
)
DATA = (
    f"The second model (GPT-NeoX of 4 blocks) keeps 20 % of its linear weights and learns from {UPDATES} updates of {BATCH} windows of "
    f"{CLAIM.setting.tokens} tokens; 128 calibration and {CLAIM.setting.test_samples} test windows"
)


def healed(methods: str, rate: float, seed: int, updates: int = UPDATES) -> dict[str, Any]:
    """Log perplexities before and after, of one seed; on validation the divergence."""
    import modicum

    setting = CLAIM.setting
    words = {
        "samples": setting.samples,
        "tokens": setting.tokens,
        "test_samples": setting.test_samples,
        "seed": seed,
        "keep": ("embed_in", "lm_head"),
    }
    fit = functools.partial(modicum.fit, str(second().folder), method=PRUNED, target="modicum", allow_broken=True, **words)
    plain, made = fit(), fit(heal=updates, heal_batch=BATCH, heal_rate=rate, heal_with=methods)
    told, quality = made.receipt["healing"], made.receipt["quality"]
    linear = lambda result: {name: value for name, value in result.model.named_parameters() if value.ndim == 2 and ".layers." in name}
    before = linear(plain)
    return {
        "log_perplexity": math.log(quality["perplexity"]), "original": math.log(quality["perplexity_original"]),
        "pruned": math.log(plain.receipt["quality"]["perplexity"]), "validation": told["validation"]["after"], "trained": told["trained"],
        "share": told["trained"] / sum(value.numel() for value in made.model.parameters()), "bytes": made.receipt["bytes"]["actual"],
        "same bytes": made.receipt["bytes"]["actual"] == plain.receipt["bytes"]["actual"], "seconds": told["seconds"],
        "outside the mask": max(int((value[before[name] == 0] != 0).sum()) for name, value in linear(made).items()),
        "moved": int(sum(not torch.equal(value, before[name]) for name, value in linear(made).items())),
    }  # fmt: skip


def best(methods: str, kept: Kept) -> float:
    """The rate of least divergence on validation windows of a seed of their own, in half the updates."""
    lost = {
        rate: kept(f"{methods}, rate {rate:g}, choosing", functools.partial(healed, methods, rate, CHOOSING, UPDATES // 2))["validation"]
        for rate in RATES
    }
    return min(lost, key=lambda rate: lost[rate])


def main() -> None:
    kept, setting = Kept.of(CLAIM.id), CLAIM.setting
    found, rates = {}, {}
    for methods in (PERP, FULL, VECTORS):
        rate = rates[methods] = best(methods, kept)
        found[methods] = [
            kept(f"{methods}, rate {rate:g}, seed {seed}", functools.partial(healed, methods, rate, seed)) for seed in setting.seeds
        ]
    back = {methods: [each["pruned"] - each["log_perplexity"] for each in rows] for methods, rows in found.items()}
    rows = [
        {
            "option": f"{PRUNED}, heal {methods}", "log perplexity": [each["log_perplexity"] for each in rows], "taken back": back[methods],
            "trained numbers": [each["trained"] for each in rows], "share of all": [each["share"] for each in rows],
            "bytes": [each["bytes"] for each in rows], "seconds of healing": [each["seconds"] for each in rows],
        }
        for methods, rows in found.items()
    ]  # fmt: skip
    gains = [one - SHARE * all for one, all in zip(back[PERP], back[FULL])]
    mean = lambda name: statistics.mean(each[name] for each in found[PERP])
    figures = {
        "log perplexity of the original, and pruned": [mean("original"), mean("pruned")], "rates": rates,
        "share of what full retraining takes back": statistics.mean(one / all for one, all in zip(back[PERP], back[FULL])),
    }  # fmt: skip
    every = [each for rows in found.values() for each in rows]
    conditions = {
        "no entry outside the mask is other than zero": all(each["outside the mask"] == 0 for each in every),
        "files have the bytes of the pruned model": all(each["same bytes"] for each in every),
        "weights under the mask have moved": all(each["moved"] for each in found[PERP]),
        "fewer than a fifth of the numbers of full retraining are trained": 5 * found[PERP][0]["trained"] < found[FULL][0]["trained"],
    }
    show(result(CLAIM, kept, rows, gains, figures, conditions, DATA))


if __name__ == "__main__":
    main()
