"""S169, RSQ: tokens that others attend to count for more in GPTQ of a turned model, against GPTQ of the same turned model alone."""

from __future__ import annotations

import functools
import math
from typing import Any

from common import Claim, Setting, result, show
from kept import Kept

OPTION = "gptq bits=3 group=0 sweeps=0 towards=0"
ALIKE, WEIGHED, PLAIN = "turned, tokens alike", "turned, tokens by attention", "not turned, tokens alike"
CLAIM = Claim(
    id="S169",
    system="RSQ",
    claim="Fuses Hadamard rotations into weights, scales each token feature by attention concentration (attention it receives), runs GPTQ on the "
    "scaled-token Hessian; 3-bit perplexity is below unscaled rotated GPTQ on a small LM.",
    metric="log perplexity of the turned demo under GPTQ of three bits, one scale a row, tokens alike, minus that with tokens by attention",
    margin=2.0,
    setting=Setting(
        method="turned, tokens by attention",
        baselines=("turned, tokens alike",),
        beside=("not turned, tokens alike",),
        tokens=256,
        test_samples=32,
    ),
)
ASKED = {WEIGHED: ("hadamard", "attention"), ALIKE: ("hadamard", None), PLAIN: (None, None)}


def once(name: str, seed: int) -> dict[str, Any]:
    """Quality of one of the three."""
    import modicum

    (rotate, importance), setting = ASKED[name], CLAIM.setting
    receipt = modicum.fit(
        "demo", method=OPTION, target="modicum", seed=seed, rotate=rotate, importance=importance, samples=setting.samples,
        tokens=setting.tokens, test_samples=setting.test_samples, allow_broken=True,
    ).receipt  # fmt: skip
    return {
        "log_perplexity": math.log(receipt["quality"]["perplexity"]),
        "divergence": receipt["quality"]["mean"],
        "bytes": receipt["bytes"]["actual"],
    }


def main() -> None:
    kept, seeds = Kept.of(CLAIM.id), CLAIM.setting.seeds
    found = {name: [kept(f"{name}, seed {seed}", functools.partial(once, name, seed)) for seed in seeds] for name in ASKED}
    rows = [{"option": name, **{key: [each[key] for each in values] for key in values[0]}} for name, values in found.items()]
    gains = [alike["log_perplexity"] - weighed["log_perplexity"] for weighed, alike in zip(found[WEIGHED], found[ALIKE])]
    fits = all(weighed["bytes"] <= alike["bytes"] for weighed, alike in zip(found[WEIGHED], found[ALIKE]))
    show(result(CLAIM, kept, rows, gains, {}, {"no more bytes": fits}))


if __name__ == "__main__":
    main()
