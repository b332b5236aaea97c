"""S019, PiSSA: training of a weight's principal singular directions, against LoRA at equal rank, each at its best rate."""

from __future__ import annotations

import functools
import time
from typing import Any

import torch
from scipy.linalg import hadamard

from adapting import DATA, adapted, before, means, row, shared
from common import Claim, Setting, result, show
from modicum.numerics.svd import principal
from modicum.train.trained import Trained, trained
from scenes.decoder import decoder
from scenes.domains import opened, windows

CLAIM = Claim(
    id="S019",
    system="PiSSA",
    claim="Set A=U_r S_r^(1/2), B=S_r^(1/2) V_r^T, freeze the residual; output equals the original at step 0, the adapter exports as LoRA exactly, "
    "and fine-tuning loss falls faster than LoRA at equal rank.",
    metric="mean training loss over all updates of LoRA minus that of PiSSA, same rank, windows and order, each at its own best rate",
    margin=2.0,
    setting=Setting(method="pissa rank=8", baselines=("lora rank=8",), seeds=(0, 1, 2), test_samples=0),
)
SIDE, RANK = 4096, 8


def as_lora(t: Trained) -> dict[str, Any]:
    """How far the change of each weight is from one product of twice the rank, of its largest singular value."""
    delta, off = t.delta(), 0.0
    for name, form in delta.forms.items():
        base = t.places[name].base.dense()
        left, right = (torch.cat([getattr(part, side) for part in form.parts[1].parts], axis) for side, axis in (("left", 1), ("right", 0)))
        weight = delta.weight(name, base)
        off = max(off, float((base + left @ right - weight).norm() / (weight - base).norm()))
    return {"off": off}


def at_first() -> bool:
    """Whether logits are the base's to the bit before the first update."""
    module, ids = opened(decoder()), windows("prose", "test")[:4]
    with torch.no_grad():
        plain = module(input_ids=ids).logits
        with trained(module, CLAIM.setting.method):
            return torch.equal(module(input_ids=ids).logits, plain)


def start() -> dict[str, float]:
    """Seconds to begin on a large weight whose singular values are known, of a root's decay, and how far those found are off."""
    known = torch.arange(1, SIDE + 1, dtype=torch.float32).rsqrt()
    signs = torch.tensor(hadamard(SIDE), dtype=torch.float32) / SIDE**0.5
    weight = (signs * known) @ signs[torch.randperm(SIDE, generator=torch.Generator().manual_seed(0))]
    best, found = float("inf"), known
    for _ in range(3):
        begun = time.process_time()
        _, found, _ = principal(weight, RANK, torch.Generator().manual_seed(0))
        best = min(best, time.process_time() - begun)
    return {"seconds": best, "off": float(((found - known[:RANK]) / known[:RANK]).abs().max())}


def main() -> None:
    kept, setting = shared(), CLAIM.setting
    found = {plan: adapted(kept, plan, setting.seeds) for plan in (setting.method, *setting.baselines)}
    exact = adapted(kept, setting.method, setting.seeds[:1], seen=as_lora)[0]["seen"]["off"]
    equal, begun, untrained = kept("at first", at_first), kept("start", start), kept("before", functools.partial(before))
    best = min(setting.baselines, key=lambda plan: sum(means(found[plan], "curve")))
    order = [setting.method, best, *(plan for plan in setting.baselines if plan != best)]
    gains = [b - a for a, b in zip(means(found[setting.method], "curve"), means(found[best], "curve"))]
    held_out = [b - a for a, b in zip(means(found[setting.method], "loss"), means(found[best], "loss"))]
    figures = {
        "held-out loss before training": untrained, "held-out loss of the baseline minus PiSSA's": held_out,
        "distance from one product of twice the rank, as a share of the change": exact,
        f"seconds of one processor to begin on {SIDE} x {SIDE}": begun["seconds"], "largest relative error of its singular values": begun["off"],
    }  # fmt: skip
    conditions = {
        "logits are the base's to the bit at first": equal, "exported as LoRA it is the same to one part in a million": exact < 1e-6,
        "it begins within a second, singular values within a thousandth": begun["seconds"] < 1 and begun["off"] < 1e-3,
    }  # fmt: skip
    show(result(CLAIM, kept, [row(plan, found[plan]) for plan in order], gains, figures, conditions, DATA))


if __name__ == "__main__":
    main()
