"""S068, adapting audio spectrogram transformers: adapters in four places, LoRA and prompts of as many numbers, on sounds of other kinds."""

from __future__ import annotations

import functools
import statistics
from typing import Any

import torch

from classifying import at_best, learn
from common import Claim, Setting, result, show
from kept import Kept
from modicum.train.trained import trained
from scenes.spectrograms import accuracy, listener, opened, sounds
from scenes.training import classes, drawn

CLAIM = Claim(
    id="S068",
    system="PETL for Audio Spectrogram Transformers",
    claim="Fine-tune a small AST with adapters (sequential/parallel, Houlsby/Pfeiffer), LoRA, prefix and prompt tuning at matched trainable counts "
    "on one audio set; adapters must lead, and the residual ablation be reported.",
    metric="accuracy on held-out sounds of the best adapter minus that of the best of LoRA and prompts, each chosen on validation",
    margin=2.0,
    setting=Setting(
        method="adapter, the best on validation", baselines=("LoRA or prompts, the best on validation",),
        beside=("full", "the head alone"), test_samples=0,
    ),
)  # fmt: skip
HEAD = {"classifier.dense.weight": "full", "classifier.dense.bias": "full"}
ADAPTERS = {
    "behind both parts": "bottleneck rank=4", "beside both parts": "bottleneck rank=4 parallel=true",
    "behind the last": "bottleneck rank=8 behind=last", "beside the last": "bottleneck rank=8 behind=last parallel=true",
}  # fmt: skip
ABLATED = {
    "behind both parts, no residual": "bottleneck rank=4 residual=false",
    "behind the last, no residual": "bottleneck rank=8 behind=last residual=false",
}
OTHERS = {"LoRA of queries and values": "lora rank=4", "prompt": "vpt tokens=48", "prefix": "vpt tokens=16 deep=true"}
PLANS: dict[str, dict[str, str]] = {
    **{name: {"*": option} for name, option in (ADAPTERS | ABLATED).items()},
    "LoRA of queries and values": {"*.q_proj.weight": "lora rank=4", "*.v_proj.weight": "lora rank=4"},
    **{name: {"*": OTHERS[name]} for name in ("prompt", "prefix")},
    "full": {"*": "full"}, "the head alone": {},
}  # fmt: skip
RATES: dict[str, tuple[float, ...]] = {"full": (1e-3, 3e-3), "prompt": (1e-2, 3e-2), "prefix": (1e-2, 3e-2), "the head alone": (1e-2, 3e-2)}
STEPS, BATCH, USUAL = 60, 32, (3e-3, 1e-2)
DATA = (
    f"A spectrogram transformer of 100,000 numbers, trained on eight kinds of sounds, learns eight others of 60 sounds each in {STEPS} updates of "
    f"{BATCH}, with a new head; 640 test sounds, each method at its best of two rates on 320 validation sounds"
)


def once(name: str, rate: float, seed: int, part: str) -> dict[str, Any]:
    model, (x, y) = opened(listener(), seed), sounds("second", "train")
    plan = PLANS[name] if name == "full" else {**PLANS[name], **HEAD}
    with trained(model, plan, seed=seed, total=STEPS) as t:
        learn(t, ((x[places], y[places]) for places in drawn(len(x), BATCH, seed)), classes, rate, STEPS)
        with torch.no_grad():
            held = sounds("second", part)
            return {"score": float(classes(model, held)), "accuracy": accuracy(model, *held), "trained": t.count, "head": 520}


def main() -> None:
    kept, setting = Kept.of(CLAIM.id), CLAIM.setting
    found: dict[str, list[dict[str, Any]]] = {}
    validated: dict[str, float] = {}
    for name in PLANS:
        rates = RATES.get(name, USUAL)
        found[name] = at_best(kept, name, functools.partial(once, name), rates, setting.seeds)
        best = found[name][0]["rate"]
        validated[name] = kept(f"{name}, rate {best:g}", functools.partial(once, name, best, 1000, "validation"))["score"]
    first, second = (min(names, key=validated.__getitem__) for names in (ADAPTERS, OTHERS))
    told = {name: [one["accuracy"] for one in each] for name, each in found.items()}
    gains = [mine - other for mine, other in zip(told[first], told[second])]
    order = [first, second, *(name for name in found if name not in (first, second))]
    made = [
        {
            "option": name, "accuracy": told[name], "trained beside the head": [one["trained"] - one["head"] for one in found[name]],
            "rate": [one["rate"] for one in found[name]],
        }
        for name in order
    ]  # fmt: skip
    mean = lambda name: statistics.mean(told[name])
    figures = {
        "what a residual is worth behind both parts": mean("behind both parts") - mean("behind both parts, no residual"),
        "what a residual is worth behind the last": mean("behind the last") - mean("behind the last, no residual"),
    }
    counts = [found[name][0]["trained"] for name in (*ADAPTERS, *OTHERS)]
    conditions = {"trained numbers within a fiftieth of each other": max(counts) <= 1.02 * min(counts)}
    show(result(CLAIM, kept, made, gains, figures, conditions, DATA))


if __name__ == "__main__":
    main()
