"""S426, sensitive sparse zeroth-order tuning: a thousandth of the weights over four bits, by losses alone, against MeZO of all weights."""

from __future__ import annotations

import functools
import sys
import time
from typing import Any

import torch

from adapting import TOKENS, part, rows
from classifying import at_best
from common import Claim, Setting, result, show
from kept import Kept
from modicum.core.errors import ModelError
from modicum.numerics.grid import Grid
from modicum.train.loop import joined, train
from modicum.train.objectives import next_token
from modicum.train.settings import Loop
from modicum.train.trained import trained
from scenes import Made
from scenes.decoder import decoder, text
from scenes.domains import losses, opened

CLAIM = Claim(
    id="S426",
    system="Sensitive sparse ZO fine-tuning",
    claim="Select the top 0.1% weights by squared pretraining-text gradients, quantize the rest to 4 bits, run two-forward-pass MeZO on the selected "
    "ones; task accuracy is at least full MeZO at equal steps.",
    metric="held-out loss of all weights trained by MeZO minus that of a thousandth of them over four bits",
    margin=2.0,
    setting=Setting(
        method="fish keep=0.001 | mezo, over four bits", baselines=("full | mezo",), test_samples=0,
    ),
)  # fmt: skip
STEPS, BATCH, WIDTH, LAYERS, SCENE_STEPS = 600, 8, 32, 8, 400
RATES: dict[str, tuple[float, ...]] = {
    "fish keep=0.001 | mezo, over four bits": (1e-3, 3e-3, 1e-2), "full | mezo": (1e-4, 3e-4, 1e-3),
}  # fmt: skip
DATA = (
    f"A decoder of {LAYERS} blocks and width {WIDTH}, trained on sources, learns prose in {STEPS} updates of two losses on {BATCH} windows of "
    f"{TOKENS} tokens each, judged on 256 windows of help topics; each at its best of three rates on 96 validation windows, in half the updates"
)


def small() -> Made:
    return decoder(width=WIDTH, layers=LAYERS, steps=SCENE_STEPS)


def before() -> float:
    return float(losses(opened(small()), part("test", 256)).mean())


def once(name: str, rate: float, seed: int, judged: str) -> dict[str, Any]:
    """Loss of each window after training by losses alone; places are chosen by the gradient of windows of sources, which training does not see."""
    module, option = opened(small()), name.partition(",")[0]
    steps = STEPS if judged == "test" else STEPS // 2
    names = [name for name, _ in module.named_parameters() if "_proj" in name]
    plan = dict.fromkeys(names, option)
    grid = Grid(bits=4, group=32, symmetric=False)
    weights = {name: module.get_parameter(name).detach() for name in names}
    rounded = {name: grid.encode(weight, *grid.fit(weight, torch.float32)) for name, weight in weights.items()}
    forms = rounded if option != name else {}
    with trained(module, plan, seed=seed, total=steps, forms=forms) as t:
        if t.watched:
            for batch in joined(rows(text()[:64, :TOKENS]), 16):
                next_token(module, batch)[0].sum().backward()
            t.revise()
        start, loop = time.process_time(), Loop(steps=steps, rate=rate, batch=BATCH, seed=seed)
        try:
            train(module, t, rows(part("train")), loop, training=False)
        except ModelError:
            return {"score": sys.float_info.max}
        ids = part(judged, 256 if judged == "test" else 96)
        held = sum(each.nbytes for each in (forms or weights).values())
        return {"score": float(losses(module, ids).mean()), "trained": t.count, "held": held, "seconds": time.process_time() - start}


def main() -> None:
    kept, setting = Kept.of(CLAIM.id), CLAIM.setting
    untrained = kept("before", before)
    found = {name: at_best(kept, name, functools.partial(once, name), rates, setting.seeds) for name, rates in RATES.items()}
    loss = {name: [one["score"] for one in each] for name, each in found.items()}
    gains = [other - mine for mine, other in zip(loss[setting.method], loss["full | mezo"])]
    made = [
        {
            "option": name, "loss": loss[name], "trained": [one["trained"] for one in each], "rate": [one["rate"] for one in each],
            "bytes of the weights beneath": [one["held"] for one in each], "seconds": [round(one["seconds"], 2) for one in each],
        }
        for name, each in found.items()
    ]  # fmt: skip
    conditions = {
        "it learns: the loss falls in every seed": max(loss[setting.method]) < untrained,
        "at most a sixth of the bytes beneath": 6 * found[setting.method][0]["held"] <= found["full | mezo"][0]["held"],
    }
    show(result(CLAIM, kept, made, gains, {"held-out loss before training": untrained}, conditions, DATA))


if __name__ == "__main__":
    main()
