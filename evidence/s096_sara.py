"""S096, SaRA: the smallest tenth of a diffusion model's weights is put to use, on coloured digits, against all of its weights."""

from __future__ import annotations

import functools
from typing import Any

import torch

from classifying import at_best, learn
from common import Claim, Setting, result, show
from kept import Kept
from modicum.train.trained import trained
from scenes.diffusion import batches, diffusion, held_out, loss, opened, small

CLAIM = Claim(
    id="S096",
    system="SaRA",
    claim="Train only the smallest 10-20% weights as a sparse update with nuclear-norm penalty, re-selecting still-ineffective ones midway and "
    "keeping gradients only for them; a tiny diffusion model adapts with less memory than full fine-tuning.",
    metric="share of the fall of the denoising error on coloured digits that SaRA reaches, of full fine-tuning's, minus three quarters",
    margin=2.0,
    setting=Setting(method="sara keep=0.15", baselines=("shift",), beside=("apet keep=0.15", "lora rank=3"), test_samples=0),
)
STEPS, SHARE, RATES = 60, 0.75, (1e-3, 3e-3, 1e-2)
DATA = f"A diffusion model of white digits of 8 by 8 learns coloured ones in {STEPS} updates of 64, judged on 497 of them, each noised four times"


def once(option: str, rate: float, seed: int, part: str) -> dict[str, Any]:
    """Denoising error after training, numbers trained, bytes of values, gradients and moments, and the change's entropy of singular values."""
    torch.manual_seed(seed)
    model = opened(diffusion())
    with trained(model, {"*blocks*.weight": option, "*ward.weight": option}, seed=seed, total=STEPS) as t:
        learn(t, batches(small("train", True, seed=1), seed), loss, rate, STEPS)
        return {"score": held_out(model, small(part, True, seed=2)), "trained": t.count, "bytes": 16 * t.count}


def before() -> float:
    return held_out(opened(diffusion()), small("test", True, seed=2))


def main() -> None:
    kept, setting = Kept.of(CLAIM.id), CLAIM.setting
    untrained = kept("before", before)
    found = {
        option: at_best(kept, option, functools.partial(once, option), RATES, setting.seeds)
        for option in (setting.method, *setting.baselines, *setting.beside)
    }
    whole = [untrained - each["score"] for each in found["shift"]]
    share = {option: [(untrained - each["score"]) / all_ for each, all_ in zip(found[option], whole)] for option in found}
    rows = [
        {
            "option": option, "denoising error": [each["score"] for each in found[option]], "share of the whole fall": share[option],
            "trained": [each["trained"] for each in found[option]], "bytes to train them": [each["bytes"] for each in found[option]],
            "rate": [each["rate"] for each in found[option]],
        }
        for option in found
    ]  # fmt: skip
    conditions = {
        "at most a fifth of the bytes of full fine-tuning": 5 * rows[0]["bytes to train them"][0] <= rows[1]["bytes to train them"][0]
    }
    gains = [each - SHARE for each in share[setting.method]]
    show(result(CLAIM, kept, rows, gains, {"denoising error before": untrained}, conditions, DATA))


if __name__ == "__main__":
    main()
