"""S008, LoRAM: an adapter trained on a model of three quarters of the width, applied to the whole one.

What is cut are inner channels of feed-forward parts, those whose three weights are smallest. The adapter's changes are laid at the rows and columns
that the cut had left, and the whole decoder with them is judged against itself untuned and against the cut one tuned.
"""

from __future__ import annotations

import functools
import statistics
from typing import Any

import torch

from adapting import BATCH, DATA, STEPS, chosen, once, part, rows, shared
from common import Claim, Setting, result, show
from modicum.delta import Delta
from modicum.train.loop import train
from modicum.train.settings import Loop
from modicum.train.trained import trained
from scenes.decoder import decoder
from scenes.domains import losses, opened

CLAIM = Claim(
    id="S008",
    system="LoRAM",
    claim="Structurally prune a small LM, train LoRA on it, scatter the pruned factors back to full shape, merge into the unpruned model; task loss "
    "must beat the untuned full model and the tuned pruned one.",
    metric="held-out loss of the better of the untuned whole decoder and the tuned cut one, minus that of the whole one with the adapter",
    margin=2.0,
    setting=Setting(method="lora rank=8, laid on the whole", baselines=("untuned whole", "lora rank=8, cut"), test_samples=0),
)
PLAN, KEPT, TEST = "lora rank=8", 0.75, 256
SAID = ("laid on the whole", "tuned cut", "untuned cut")


def cut(model: torch.nn.Module, share: float) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Cut the feed-forward parts in place; which rows and columns stay, by the weight's name."""
    kept_rows, kept_columns = {}, {}
    for place, layer in enumerate(model.model.layers):
        gate, up, down = layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj
        size = gate.weight.norm(dim=1) * up.weight.norm(dim=1) * down.weight.norm(dim=0)
        stays = torch.zeros(len(size), dtype=torch.bool).index_fill(0, size.topk(round(share * len(size))).indices, True)
        for name, linear in (("gate", gate), ("up", up)):
            linear.weight = torch.nn.Parameter(linear.weight.detach()[stays])
            linear.out_features, kept_rows[f"model.layers.{place}.mlp.{name}_proj.weight"] = len(linear.weight), stays
        down.weight, down.in_features = torch.nn.Parameter(down.weight.detach()[:, stays]), int(stays.sum())
        kept_columns[f"model.layers.{place}.mlp.down_proj.weight"] = stays
    return kept_rows, kept_columns


def tuned(rate: float, seed: int, share: float) -> dict[str, Any]:
    """Losses of the whole and the cut decoder, before and after, and what was trained and held."""
    whole, small = opened(decoder()), opened(decoder())
    kept_rows, kept_columns = cut(small, share)
    ids, held = part("test", TEST), lambda model: sum(each.nbytes for each in model.parameters())
    found = {"untuned whole": losses(whole, ids), "untuned cut": losses(small, ids)}
    with trained(small, PLAN, seed=seed, total=STEPS) as t:
        train(small, t, rows(part("train")), Loop(steps=STEPS, rate=rate, batch=BATCH, seed=seed))
        found["tuned cut"] = losses(small, ids)
        delta, count = t.delta(), t.count
    laid(whole, delta.onto(lambda name: whole.get_parameter(name).detach(), kept_rows, kept_columns))
    found["laid on the whole"] = losses(whole, ids)
    return {name: float(each.mean()) for name, each in found.items()} | {"trained": count, "bytes": [held(whole), held(small)]}


def laid(model: torch.nn.Module, delta: Delta) -> None:
    """Put a change into a model's weights."""
    with torch.no_grad():
        for name, weight in delta.on(lambda name: model.get_parameter(name).detach()):
            model.get_parameter(name).copy_(weight)


def main() -> None:
    kept, setting = shared(), CLAIM.setting
    rate = chosen(kept, PLAN)
    work = lambda seed, share: functools.partial(tuned, rate, seed, share)
    found, half = (
        [kept(f"loram, {share:g} kept, rate {rate:g}, seed {seed}", work(seed, share)) for seed in setting.seeds] for share in (KEPT, 0.5)
    )
    reached = [kept(f"{PLAN}, width 128, rate {rate:g}, seed {seed}", functools.partial(once, PLAN, rate, seed)) for seed in setting.seeds]
    of = lambda name: [each[name] for each in found]
    held = lambda place: [each["bytes"][place] for each in found]
    none = [0] * len(found)
    made = lambda option, name, trained, place: {
        "option": option,
        "loss": of(name),
        "trained": trained,
        "bytes of the model trained on": held(place),
    }
    method = made(setting.method, "laid on the whole", of("trained"), 1)
    others = [made(setting.baselines[0], "untuned whole", none, 0), made(setting.baselines[1], "tuned cut", of("trained"), 1)]
    others.sort(key=lambda row: statistics.mean(row["loss"]))
    others += [made("untuned cut", "untuned cut", none, 1)]
    others += [
        {
            "option": f"{PLAN}, trained on the whole",
            "loss": [statistics.mean(each["loss"]) for each in reached],
            "trained": [each["trained"] for each in reached],
            "bytes of the model trained on": held(0),
        }
    ]
    gains = [b - a for a, b in zip(method["loss"], others[0]["loss"])]
    beaten = {f"better than {row['option']} in every seed": all(a < b for a, b in zip(method["loss"], row["loss"])) for row in others[:2]}
    figures = {
        "share of feed-forward channels kept": KEPT,
        "losses where half are kept": {name: [each[name] for each in half] for name in SAID},
    }
    show(result(CLAIM, kept, [method, *others], gains, figures, beaten, DATA))


if __name__ == "__main__":
    main()
