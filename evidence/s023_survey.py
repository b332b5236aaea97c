"""S023, the survey of parameter-efficient fine-tuning: one working member of each of its classes, with what it trains, stores and holds.

The classes are the survey's. Serving is told by two adapters of one base: each is put on and taken off again, and outputs are those it was trained to
give, and the base's, to the bit.
"""

from __future__ import annotations

import functools
import statistics
import time
from typing import Any

import torch

from adapting import BATCH, RATES, STEPS, Plan, adapted, before, data, once, part, row, shared
from adapting import _saved as saved
from adapting import rows as texts
from common import Claim, Setting, result, show
from modicum.delta import Delta
from modicum.numerics.grid import Grid
from modicum.train.loop import train
from modicum.train.settings import Loop
from modicum.train.trained import trained
from scenes.decoder import decoder
from scenes.domains import losses, opened

CLAIM = Claim(
    id="S023",
    system="PEFT comprehensive survey",
    claim="Taxonomy: additive (adapters, soft prompts), selective (masks), reparameterized (LoRA family), hybrid, efficient PEFT, and serving "
    "systems; modicum must have one working member per class with trainable counts and memory reported.",
    metric="fall of held-out loss by the member that falls least, of those of all classes",
    margin=2.0,
    setting=Setting(method="the member that falls least", baselines=("untrained",), test_samples=0),
)
HIGH = (1e-2, 3e-2)
MEMBERS: dict[str, tuple[Plan, tuple[float, ...]]] = {
    "additive, adapter": ("bottleneck rank=8", (3e-3, 1e-2)),
    "additive, soft prompt": ("prompt tokens=8", HIGH),
    "selective, structured": ({"*norm.weight": "shift"}, HIGH),
    "selective, mask": ("apet keep=0.01", HIGH),
    "reparameterized": ("lora rank=8", RATES),
    "hybrid": ("dsee rank=4 keep=0.01", (5e-3, 1e-2)),
}
EFFICIENT = "lora rank=8"


def main() -> None:
    kept, setting = shared(), CLAIM.setting
    untrained = kept("before", functools.partial(before))
    found = {name: adapted(kept, plan, setting.seeds, rates) for name, (plan, rates) in MEMBERS.items()}
    rate = found["reparameterized"][0]["rate"]
    quantized = [
        kept(f"over four bits, rate {rate:g}, seed {seed}", functools.partial(over_codes, rate, seed)) | {"rate": rate}
        for seed in setting.seeds
    ]
    found["efficient, over four bits"] = quantized
    served = kept(f"served, rate {rate:g}", functools.partial(switched, rate))
    falls = {name: [untrained - statistics.mean(each["loss"]) for each in seeds] for name, seeds in found.items()}
    least = min(falls, key=lambda name: statistics.mean(falls[name]))
    named = lambda name: row(MEMBERS[name][0] if name in MEMBERS else EFFICIENT, found[name])
    rows = [named(name) | {"option": f"{name}: {named(name)['option']}"} for name in (least, *(name for name in found if name != least))]
    none = {key: [0] * len(setting.seeds) for key in rows[0] if key != "option"}
    rows.insert(1, none | {"option": "untrained", "loss": [untrained] * len(setting.seeds)})
    conditions = {
        "every member lowers held-out loss in every seed": min(map(min, falls.values())) > 0,
        "two adapters of one base switch to the bit": served,
    }
    figures = {"bytes of the layers beneath, in four bits and whole": quantized[0]["held"]}
    show(result(CLAIM, kept, rows, falls[least], figures, conditions, data(2)))


def over_codes(rate: float, seed: int) -> dict[str, Any]:
    """LoRA over layers of four bits in groups of 32, which are what is held of them."""
    module, grid = opened(decoder()), Grid(bits=4, group=32, symmetric=False)
    names = [name for name, _ in module.named_parameters() if "_proj" in name]
    weights = {name: module.get_parameter(name).detach() for name in names}
    forms = {name: grid.encode(weight, *grid.fit(weight, torch.float32)) for name, weight in weights.items()}
    with trained(module, EFFICIENT, seed=seed, total=STEPS, forms=forms) as t:
        start = time.process_time()
        curve = train(module, t, texts(part("train")), Loop(steps=STEPS, rate=rate, batch=BATCH, seed=seed))
        seconds = time.process_time() - start
        return {
            "loss": losses(module, part("test", 256)).tolist(), "curve": curve, "trained": t.count, "seconds": seconds,
            "memory": 16 * t.count + saved(module),
            "held": [sum(form.nbytes for form in forms.values()), sum(weight.nbytes for weight in weights.values())],
        }  # fmt: skip


def switched(rate: float) -> bool:
    """Whether outputs are the same to the bit each time one of two adapters is put on a base, and taken off."""
    model, ids = opened(decoder()), part("test", 4)
    deltas: list[Delta] = [once(EFFICIENT, rate, seed, 10, seen=lambda t: t.delta())["seen"] for seed in (0, 1)]
    base, plain = {name: each.clone() for name, each in model.state_dict().items()}, losses(model, ids)
    met: list[list[torch.Tensor]] = [[], []]
    for turn in range(4):
        for name, weight in deltas[turn % 2].on(lambda name: base[name]):
            model.get_parameter(name).data.copy_(weight)
        met[turn % 2].append(losses(model, ids))
        model.load_state_dict(base)
        if not torch.equal(losses(model, ids), plain):
            return False
    return all(torch.equal(one, other) for one, other in met)


if __name__ == "__main__":
    main()
