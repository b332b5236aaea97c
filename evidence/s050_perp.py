"""S050, PERP: after pruning by magnitude, norms, biases and a product under the mask, against all that the mask left retrained.

The second model has layer norms and biases. Each is healed by `modicum fit --heal`: trained to answer as the unpruned model, where the paper learns
the next token. Full retraining trains every value that the mask left, norms and biases too; the table and the head stay in both. Each has the
learning rate of the least divergence on validation windows of a seed of its own, in half the updates.
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

UPDATES, BATCH, SHARE, RATES, CHOOSING, TEST = 40, 4, 0.8, (3e-3, 1e-2), 1000, 48
PRUNED, PERP, FULL = "magnitude keep=0.2", "norms, held rank=2", "norms, held"
CLAIM = Claim(
    id="S050",
    system="PERP",
    claim="After magnitude-pruning a small OPT/GPT-2, retrain only biases, LayerNorms and mask-mergeable LoRA; perplexity must come close to full "
    "retraining and the merged weights must keep the sparsity mask exactly.",
    metric="what PERP takes back of the log perplexity that pruning cost, less 0.8 of what full retraining takes back",
    margin=2.0,
    setting=Setting(
        method="magnitude keep=0.2, heal norms, held rank=2",
        baselines=("magnitude keep=0.2, heal norms, held",),
        samples=128,
        tokens=64,
        test_samples=0,
    ),
)
DATA = (
    f"The second model (GPT-NeoX of 4 blocks) keeps 20 % of its linear weights and learns from {UPDATES} updates of {BATCH} windows of "
    f"{CLAIM.setting.tokens} tokens; 128 calibration and {TEST} test windows"
)


def fitting(seed: int) -> Any:
    """``fit`` of the pruned model by one seed."""
    import modicum

    setting = CLAIM.setting
    words: dict[str, Any] = {"samples": setting.samples, "tokens": setting.tokens, "test_samples": TEST, "seed": seed}
    words |= {"keep": ("embed_in", "lm_head")}
    return functools.partial(modicum.fit, str(second().folder), method=PRUNED, target="modicum", allow_broken=True, **words)


def best(methods: str) -> float:
    """The rate of least divergence on validation windows."""
    fit = functools.partial(fitting(CHOOSING), heal=UPDATES // 2, heal_batch=BATCH, heal_with=methods)
    lost = {rate: fit(heal_rate=rate).receipt["healing"]["validation"]["after"] for rate in RATES}
    return min(lost, key=lambda rate: lost[rate])


def healed(seed: int, rates: dict[str, float]) -> dict[str, Any]:
    """Log perplexities of the original, pruned, and healed in both ways, with what was trained and where."""
    fit = fitting(seed)
    linear = lambda result: {name: value for name, value in result.model.named_parameters() if value.ndim == 2 and ".layers." in name}
    plain = fit()
    before, quality = linear(plain), plain.receipt["quality"]
    found: dict[str, Any] = {"original": math.log(quality["perplexity_original"]), "pruned": math.log(quality["perplexity"])}
    for methods in (PERP, FULL):
        made = fit(heal=UPDATES, heal_batch=BATCH, heal_with=methods, heal_rate=rates[methods])
        told, after = made.receipt["healing"], linear(made)
        found[methods] = {
            "log perplexity": math.log(made.receipt["quality"]["perplexity"]), "trained": told["trained"], "seconds": told["seconds"],
            "share": told["trained"] / sum(value.numel() for value in made.model.parameters()), "bytes": made.receipt["bytes"]["actual"],
            "same bytes": made.receipt["bytes"]["actual"] == plain.receipt["bytes"]["actual"],
            "outside the mask": max(int((value[before[name] == 0] != 0).sum()) for name, value in after.items()),
            "moved": sum(not torch.equal(value, before[name]) for name, value in after.items()),
        }  # fmt: skip
    return found


def main() -> None:
    kept = Kept.of(CLAIM.id)
    rates = {methods: kept(f"rate of {methods}", functools.partial(best, methods)) for methods in (PERP, FULL)}
    found = [kept(f"seed {seed}, rates {rates}", functools.partial(healed, seed, rates)) for seed in CLAIM.setting.seeds]
    of = lambda methods, name: [each[methods][name] for each in found]
    back = {methods: [each["pruned"] - each[methods]["log perplexity"] for each in found] for methods in (PERP, FULL)}
    rows = [
        {
            "option": f"{PRUNED}, heal {methods}", "log perplexity": of(methods, "log perplexity"), "taken back": back[methods],
            "trained numbers": of(methods, "trained"), "share of all": of(methods, "share"), "bytes": of(methods, "bytes"),
            "seconds of healing": of(methods, "seconds"),
        }
        for methods in (PERP, FULL)
    ]  # fmt: skip
    gains = [one - SHARE * all for one, all in zip(back[PERP], back[FULL])]
    figures: dict[str, Any] = {
        "rates": rates,
        "log perplexity of the original": [each["original"] for each in found], "pruned": [each["pruned"] for each in found],
        "share of what full retraining takes back": statistics.mean(one / all for one, all in zip(back[PERP], back[FULL])),
    }  # fmt: skip
    every = [each[methods] for each in found for methods in (PERP, FULL)]
    conditions = {
        "no entry outside the mask is other than zero": all(each["outside the mask"] == 0 for each in every),
        "files have the bytes of the pruned model": all(each["same bytes"] for each in every),
        "weights under the mask have moved": all(each["moved"] for each in every),
        "fewer than a fifth of the numbers of full retraining are trained": 5 * found[0][PERP]["trained"] < found[0][FULL]["trained"],
    }
    show(result(CLAIM, kept, rows, gains, figures, conditions, DATA))


if __name__ == "__main__":
    main()
