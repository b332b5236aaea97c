"""What rows on pruning share: options of ``fit`` on a decoder of a million weights, judged on windows of the demo's text."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import statistics
from typing import Any

from common import Claim, Setting, holds, judge
from kept import Kept
from scenes.decoder import decoder

# One table at both ends, which stays as it is.
EMBEDDING = ("model.embed_tokens",)


def main(claim: Claim, gradients: int = 16) -> None:
    """Run a claim and print its result as JSON; gradients are taken on so many sequences."""
    print(json.dumps(run(claim, gradients)))


def run(claim: Claim, gradients: int = 16) -> dict[str, Any]:
    """Measure everything a claim names on the decoder, and judge it."""
    kept, setting, made = Kept.of(claim.id), claim.setting, decoder()
    fit = functools.partial(fitted, setting=setting, folder=str(made.folder), gradients=gradients)
    method, *baselines = [
        _row(text, [kept(f"{text}, seed {seed}", functools.partial(fit, text, seed=seed)) for seed in setting.seeds])
        for text in (setting.method, *setting.baselines, *setting.beside)
    ]
    baselines.sort(key=lambda row: (row["option"] in setting.beside, statistics.mean(row["log_perplexity"])))
    return {
        **dataclasses.asdict(claim),
        "seeds": setting.seeds,
        "measured": method,
        "baseline": baselines[0],
        "others": baselines[1:],
        "difference": judge(method, baselines[0], claim.margin),
        "holds": holds(method, baselines[0], claim.margin, setting.extra_bytes),
        "data": "a Llama of a million weights, trained on sources of Python's library, and windows of the shipped text",
        "scenes": kept.scenes,
        "seconds": round(kept.seconds, 1),
    }


def _row(text: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    return {"option": text, **{name: [each[name] for each in found] for name in found[0]}}


def fitted(text: str, *, setting: Setting, folder: str, seed: int, gradients: int) -> dict[str, Any]:
    """Quality and bytes of one option by one seed."""
    import modicum

    receipt = modicum.fit(
        folder, method=text, target="modicum", seed=seed, samples=setting.samples, tokens=setting.tokens,
        test_samples=setting.test_samples, gradient_samples=gradients, keep=EMBEDDING, allow_broken=True,
    ).receipt  # fmt: skip
    return {
        "log_perplexity": math.log(receipt["quality"]["perplexity"]),
        "log_perplexity_original": math.log(receipt["quality"]["perplexity_original"]),
        "kl": receipt["quality"]["mean"],
        "bytes": receipt["bytes"]["actual"],
    }
