"""Which learning rate each method wants: held-out loss after a short training at seven rates on four scenes, and what its own misses.

A language model of a million parameters on prose, which it has not seen; the demo on capitals; a convolutional net and a ViT on digits whose
colours are inverted or which are turned. What is told is the loss that a rate leaves above the best of its scene, as a share of what the best gained.
"""

from __future__ import annotations

import copy
import functools
import json
import math
import sys
from collections.abc import Callable
from typing import Any

import torch

from bench.common import ROOT, show

sys.path.insert(0, str(ROOT / "evidence"))

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
METHODS = (
    "lora rank=4", "full", "bitfit", "norms", "ia3", "dora rank=4", "rslora rank=4", "pissa rank=4", "vera rank=64", "adalora rank=4", "ether",
    "ether_plus", "bone rank=4", "sorsa rank=4", "fish keep=0.02", "topk keep=0.02", "sara keep=0.02", "dsee rank=4", "apet keep=0.02",
    "compacter rank=2", "flora rank=4", "snnk", "bottleneck rank=4", "prompt tokens=8", "prefix tokens=4", "dpt tokens=8 rank=2", "ntk",
    "subspace size=256", "lora_ga rank=4", "shift", "ramt", "connected rank=4", "levi rank=8", "vpt", "clr", "codebook",
)  # fmt: skip
STEPS = {"conv": 60, "vit": 60, "decoder": 60, "demo": 30}
# Sequences of an update.
BATCH = {"conv": 32, "vit": 32, "decoder": 8, "demo": 8}
# Share of the best gain whose miss ends the search on that side, and rows that are judged at a time.
_MUCH, _TOGETHER = 0.1, 32
HEAD = ("method", "its own rate", "what it misses there at most", "the best for all scenes", "what it misses there at most", "scenes")
NOTE = (
    "Sixty updates (thirty on the demo) at each of 1e-4, 3e-4, ..., 1e-1, under a cosine; none beyond one that "
    "misses a tenth. What a rate misses is a share of what the best rate of that scene gains on held-out data; the table has the scene where that "
    "is most. ``python -m bench.rates METHOD... SCENE... RATE...``, with scikit-learn; ``known`` shows what is measured."
)
RESULTS = ROOT / "bench" / "results" / "kept" / "rates.json"


@functools.cache
def scene(name: str) -> tuple[Any, list[Any], list[Any], Any, float]:
    """A module, rows to train on, batches to judge with, the objective, and the loss before."""
    from modicum.train.loop import joined

    module, rows, held, objective = scenes()[name]()
    batches = joined(held, _TOGETHER)
    return module, rows, batches, objective, judged(module, batches, objective)


def judged(module: Any, batches: list[Any], objective: Any) -> float:
    """Loss per token or picture."""
    from modicum.train.loop import evaluate

    sums, counts = zip(*evaluate(module, batches, objective))
    return sum(sums) / sum(counts)


def scenes() -> dict[str, Callable[[], tuple[Any, list[Any], list[Any], Any]]]:
    """By name: a fresh module, rows to train on, rows to judge with, and the objective."""
    from modicum.models.located import DEMO
    from modicum.train.objectives import classes, next_token
    from scenes import decoder, digits, domains

    def text(folder: Any, domain: str, change: Callable[[str], str] = str) -> Any:
        module = domains.opened(str(folder))
        find = lambda part: [{"input_ids": row[None]} for row in ids(domain, part, change)]
        return module, find("train")[:400], find("validation")[:32], next_token

    def ids(domain: str, part: str, change: Callable[[str], str]) -> torch.Tensor:
        stream: list[int] = []
        for found in domains.tokenizer()([change(each) for each in domains.documents(domain, part)], verbose=False)["input_ids"]:
            stream += found
        return torch.tensor(stream[: len(stream) // 64 * 64]).view(-1, 64)

    def pictures(net: str, corruption: str) -> Any:
        rows = lambda part: [(x[None], y[None]) for x, y in zip(*digits.pictures(part, corruption))]
        return digits.opened(digits.classifier(net=net), net), rows("train"), rows("validation"), classes

    return {
        "decoder": lambda: text(decoder.decoder().folder, "prose"),
        "demo": lambda: text(DEMO, "sources", str.upper),
        "conv": lambda: pictures("conv", "inverted"),
        "vit": lambda: pictures("vit", "turned"),
    }


def learnt(name: str, method: str, rate: float, seed: int = 0) -> tuple[float, float]:
    """Held-out loss before and after."""
    from modicum.core.errors import ModicumError
    from modicum.train import Loop
    from modicum.train.loop import train
    from modicum.train.trained import trained

    given, rows, held, objective, before = scene(name)
    module = copy.deepcopy(given)
    loop = Loop(steps=STEPS[name], batch=BATCH[name], rate=rate, seed=seed)
    with trained(module, method, total=loop.steps, seed=seed, gradients=gradients(name, method)) as t:
        try:
            train(module, t, rows, loop, objective=objective)
        except ModicumError:
            return before, float("inf")
        return before, judged(module, held, objective)


@functools.cache
def gradients(name: str, method: str) -> dict[str, torch.Tensor] | None:
    """Those of whole weights, for a method that begins with them."""
    from modicum.core.method import find
    from modicum.train import auto

    if not getattr(find(method.split()[0]), "asks_gradient", False):
        return None
    given, rows, _, objective, _ = scene(name)
    module = copy.deepcopy(given)
    return auto.sweep(module, rows[:64], auto.planned_units(module), objective).whole


def measure(methods: tuple[str, ...] = METHODS, names: tuple[str, ...] = tuple(STEPS), rates: tuple[float, ...] = ()) -> dict[str, Any]:
    """Losses by method, scene and rate; what is known already is not measured again."""
    from modicum.core.method import find

    torch.set_num_threads(1)
    found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))["losses"] if RESULTS.exists() else {}
    for name in names:
        for method in methods:
            mine = found.setdefault(method, {}).setdefault(name, {})
            for rate in rates or _outward(find(method.split()[0]).rate):
                if "why" in mine or f"{rate:g}" in mine or (not rates and _hopeless(rate, mine)):
                    continue
                try:
                    before, after = learnt(name, method, rate)
                except Exception as error:
                    mine["why"] = str(error)[:100]
                    break
                mine |= {"before": before, f"{rate:g}": after}
                new = RESULTS.with_suffix(".new")
                new.write_text(json.dumps({"losses": found}, indent=1) + "\n", encoding="utf-8")
                new.replace(RESULTS)
                print(method, name, f"{rate:g}", f"{before:.4f} -> {after:.4f}", flush=True)
    return found


def _outward(own: float) -> list[float]:
    """The rates, that of the method first, then those around it."""
    return sorted({*RATES, own}, key=lambda rate: abs(math.log(rate / own)))


def _hopeless(rate: float, mine: dict[str, Any]) -> bool:
    """Whether a rate on the way to this one already misses much of what the best so far gains."""
    if "before" not in mine or len(mine) < 3:
        return False
    shares = {float(one): share for one, share in left(mine).items()}
    best = min(shares, key=shares.__getitem__)
    return any(share > _MUCH and min(best, rate) < one < max(best, rate) for one, share in shares.items())


def left(mine: dict[str, Any]) -> dict[str, float]:
    """By rate the share of the best gain that it misses, on one scene."""
    after = {rate: loss for rate, loss in mine.items() if rate != "before"}
    best = min(after.values())
    return {rate: (loss - best) / max(1e-9, mine["before"] - best) for rate, loss in after.items()}


def main() -> None:
    """Measure, and show each method's own rate beside the best one."""
    from modicum.core.method import find

    asked = [tuple(word for word in sys.argv[1:] if word in known) for known in (METHODS, STEPS)]
    rates = tuple(float(word) for word in sys.argv[1:] if word[0].isdigit())
    known = json.loads(RESULTS.read_text(encoding="utf-8"))["losses"] if "known" in sys.argv else None
    found = known or measure(asked[0] or METHODS, asked[1] or tuple(STEPS), rates)
    rows = []
    for method, by_scene in found.items():
        shares = {name: left(mine) for name, mine in by_scene.items() if "before" in mine and "why" not in mine}
        if not shares:
            continue
        own, seen = f"{find(method.split()[0]).rate:g}", set.intersection(*(set(each) for each in shares.values()))
        worst = {rate: max(each[rate] for each in shares.values()) for rate in seen}
        best = min(worst, key=worst.__getitem__)
        at_own = [each[own] for each in shares.values() if own in each]
        rows.append((method, own, f"{max(at_own):.0%}" if at_own else "", best, f"{worst[best]:.0%}", ", ".join(shares)))
    show("Learning rates: held-out loss at seven rates on four scenes", HEAD, rows, NOTE)


if __name__ == "__main__":
    main()
