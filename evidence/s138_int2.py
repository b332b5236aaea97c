"""S138, INT2.1: a decoder of two bits, frozen, beside a product that is trained until both answer as the whole model; three and four bits too."""

from __future__ import annotations

import functools
import math
from typing import Any

import modicum
from common import Claim, Setting, result, show
from kept import Kept
from scenes.decoder import decoder

CLAIM = Claim(
    id="S138",
    system="INT2.1 (EMEF + LREC)",
    claim="Quantize a small LM to INT2, freeze it, train LoRA with on-the-fly dequantization to match the float model's logits; perplexity must fall "
    "from broken to coherent at about 5% extra size; also INT3/INT4.",
    metric="log perplexity of the decoder in two bits minus that with the trained product beside it",
    margin=2.0,
    setting=Setting(
        method="nearest bits=2 group=32 | lora rank=1, healed",
        baselines=("nearest bits=2 group=32",),
        samples=48,
        tokens=64,
        test_samples=32,
    ),
)
STEPS, HALF, MORE = 40, 0.5, 0.1
DATA = (
    f"The decoder of `evidence/scenes` in a container; {STEPS} updates of 8 of 48 windows of 64 tokens of sources, by the divergence from the whole "
    "model's answers, the product alone trained; 32 test windows"
)


def fitted(bits: int, product: bool, seed: int) -> dict[str, Any]:
    """Quality and bytes of the decoder in so many bits."""
    plain, setting = f"nearest bits={bits} group=32", CLAIM.setting
    words = {"method": f"{plain} | lora rank=1", "heal": STEPS, "heal_with": "norms"} if product else {"method": plain}
    told = modicum.fit(
        str(decoder().folder), target="modicum", seed=seed, samples=setting.samples, tokens=setting.tokens, test_samples=setting.test_samples,
        allow_broken=True, **words,
    ).receipt  # fmt: skip
    return {
        "log_perplexity": math.log(told["quality"]["perplexity"]), "original": math.log(told["quality"]["perplexity_original"]),
        "kl": told["quality"]["mean"], "bytes": told["bytes"]["actual"], "methods": told.get("healing", {}).get("methods", {}),
    }  # fmt: skip


def main() -> None:
    kept, setting = Kept.of(CLAIM.id), CLAIM.setting
    run = lambda bits, product, seed: kept(f"{bits}, {product}, {seed}", functools.partial(fitted, bits, product, seed))
    found = {product: [run(2, product, seed) for seed in setting.seeds] for product in (True, False)}
    finer = {bits: [run(bits, product, 0) for product in (True, False)] for bits in (3, 4)}
    of = lambda product, name: [each[name] for each in found[product]]
    rows = [
        {
            "option": option,
            "log perplexity": of(product, "log_perplexity"),
            "divergence": of(product, "kl"),
            "bytes in files": of(product, "bytes"),
        }
        for option, product in ((setting.method, True), (setting.baselines[0], False))
    ]
    gains = [plain - mine for mine, plain in zip(of(True, "log_perplexity"), of(False, "log_perplexity"))]
    lost = [plain - whole for plain, whole in zip(of(False, "log_perplexity"), of(False, "original"))]
    size = [mine / plain for mine, plain in zip(of(True, "bytes"), of(False, "bytes"))]
    figures = {
        "log perplexity of the whole model": of(False, "original"), "files, relative": size,
        "log perplexity with and without the product": {f"{bits} bits": [each["log_perplexity"] for each in pair] for bits, pair in finer.items()},
        "numbers trained": of(True, "methods")[0],
    }  # fmt: skip
    conditions = {
        f"at least {HALF:g} of what two bits lost is back": all(gain >= HALF * loss for gain, loss in zip(gains, lost)),
        f"at most {MORE:.0%} more bytes": max(size) <= 1 + MORE,
        "three and four bits gain too": all(pair[0]["log_perplexity"] < pair[1]["log_perplexity"] for pair in finer.values()),
    }
    show(result(CLAIM, kept, rows, gains, figures, conditions, DATA))


if __name__ == "__main__":
    main()
