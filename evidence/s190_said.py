"""S190, intrinsic dimension of fine-tuning: a decoder learns prose in a random subspace of growing size, with a trained scale of each weight.

The paper fine-tunes BERT and counts accuracy; here it is the fall of held-out loss, of which all weights of the layers give the whole.
"""

from __future__ import annotations

import functools
import itertools
import math
import statistics
from typing import Any

from adapting import BATCH, STEPS, TOKENS, part, rows
from classifying import at_best
from common import Claim, Setting, result, show
from kept import Kept
from modicum.train.loop import train
from modicum.train.settings import Loop
from modicum.train.trained import trained
from scenes.decoder import decoder
from scenes.domains import losses, opened

CLAIM = Claim(
    id="S190",
    system="Intrinsic dimension of fine-tuning (SAID)",
    claim="Fine-tunes a small BERT through a Fastfood random projection of d parameters plus layer-wise scales for growing d, reports d90 reaching "
    "90% of full accuracy, and the compression bound depending on d only.",
    metric="share of what training all weights of the layers gains on held-out prose that a subspace of 4,000 numbers does, minus nine tenths",
    margin=2.0,
    setting=Setting(method="subspace size=4000 scales=trained", baselines=("shift",), beside=("subspace size=4000",), test_samples=0),
)
SIZES, SHARE, WIDTH, LAYERS, SCENE_STEPS = (250, 1000, 4000), 0.9, 32, 8, 400
# More numbers move a weight further at one rate.
RATES: dict[str, tuple[float, ...]] = {
    "shift": (2e-3, 4e-3), "subspace size=4000 scales=trained": (3e-3, 1e-2, 3e-2), "subspace size=4000": (1e-3, 3e-3, 1e-2, 3e-2),
}  # fmt: skip
USUAL = (1e-2, 3e-2, 1e-1)
# Of the bound: how sure, and bits of a stored number.
SURE, BITS = 0.95, 16
DATA = (
    f"A decoder of {LAYERS} blocks and width {WIDTH}, trained on sources, learns prose in {STEPS} updates of {BATCH} windows of {TOKENS} tokens, and "
    "is judged on 256 windows of help topics; each method at its best of two to four rates on 96 validation windows"
)


def untuned() -> float:
    return float(losses(opened(decoder(width=WIDTH, layers=LAYERS, steps=SCENE_STEPS)), part("test", 256)).mean())


def once(plan: str, rate: float, seed: int, judged: str) -> dict[str, Any]:
    module = opened(decoder(width=WIDTH, layers=LAYERS, steps=SCENE_STEPS))
    ids, steps = part(judged, 256 if judged == "test" else 96), STEPS if judged == "test" else STEPS // 2
    with trained(module, plan, seed=seed, total=steps) as t:
        train(module, t, rows(part("train")), Loop(steps=steps, rate=rate, batch=BATCH, seed=seed))
        return {"score": float(losses(module, ids).mean()), "trained": t.count, "bytes": t.delta().nbytes}


def bound(numbers: int, samples: int) -> float:
    """By how much error on what was not seen may exceed that on samples, at most, for a model told by so many numbers: Occam's bound."""
    return math.sqrt((numbers * BITS * math.log(2) + math.log(1 / (1 - SURE))) / (2 * samples))


def main() -> None:
    kept, setting = Kept.of(CLAIM.id), CLAIM.setting
    before = kept("before", untuned)
    plans = (setting.method, "shift", *setting.beside, *(f"subspace size={size} scales=trained" for size in SIZES[:-1]))
    found = {plan: at_best(kept, plan, functools.partial(once, plan), RATES.get(plan, USUAL), setting.seeds) for plan in plans}
    whole = [before - one["score"] for one in found["shift"]]
    share = {plan: [(before - one["score"]) / all_ for one, all_ in zip(each, whole)] for plan, each in found.items()}
    made = [
        {
            "option": plan, "share of the whole gain": share[plan], "loss": [one["score"] for one in each],
            "trained": [one["trained"] for one in each], "bytes stored": [one["bytes"] for one in each], "rate": [one["rate"] for one in each],
        }
        for plan, each in found.items()
    ]  # fmt: skip
    mean = {size: statistics.mean(share[f"subspace size={size} scales=trained"]) for size in SIZES}
    enough = [size for size in SIZES if mean[size] >= SHARE]
    figures = {
        "held-out loss before": before, "d90": str(enough[0]) if enough else f"above {SIZES[-1]}",
        "bound on the excess of an error of half of 10^6 samples, by d alone": {f"d = {size}": bound(size, 10**6) for size in SIZES},
        "the same of all weights": bound(found["shift"][0]["trained"], 10**6),
    }  # fmt: skip
    conditions = {
        "more numbers gain more": all(mean[a] < mean[b] for a, b in itertools.pairwise(SIZES)),
        "scales gain more than none": mean[SIZES[-1]] > statistics.mean(share[setting.beside[0]]),
    }
    show(result(CLAIM, kept, made, [each - SHARE for each in share[setting.method]], figures, conditions, DATA))


if __name__ == "__main__":
    main()
