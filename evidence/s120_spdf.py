"""S120, sparse pre-training and dense fine-tuning: a quarter of the weights while sources are learnt, all of them for prose."""

from __future__ import annotations

import functools
import statistics
from typing import Any

import torch

from common import Claim, Setting, result, show
from kept import Kept
from modicum.train.loop import train
from modicum.train.settings import Loop
from modicum.train.trained import trained
from scenes.decoder import config, text
from scenes.domains import losses, windows

FIRST, THEN, BATCH, WIDTH, KEEP, NEAR = 120, 40, 8, 64, 0.25, 0.1

CLAIM = Claim(
    id="S120",
    system="SPDF",
    claim="Pretrain a tiny GPT under a static random 50-75% mask, then free the zeros and fine-tune densely; downstream score must approach dense "
    "pretraining and beat sparse fine-tuning, with training FLOPs counted.",
    metric="held-out loss on prose of sparse fine-tuning minus that of dense fine-tuning, both after the same sparse pre-training",
    margin=2.0,
    setting=Setting(method="sparse, then dense", baselines=("sparse, then sparse",), beside=("dense, then dense",), test_samples=0),
)
DATA = (
    f"A decoder of width {WIDTH} learns sources in {FIRST} updates of {BATCH} windows of 128 tokens, then prose in {THEN} of 64 tokens, and is "
    "judged on 256 windows of help topics that it has not seen"
)
PLANS = {"sparse": f"random keep={KEEP} layers=uniform", "dense": "dense"}


def rows(ids: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """Sequences as the loop takes them."""
    return [{"input_ids": each[None]} for each in ids]


def trained_on(model: torch.nn.Module, option: str, ids: torch.Tensor, steps: int, rate: float, seed: int) -> int:
    """Train a model further, which holds its weights afterwards; how many numbers of its blocks' layers were trained."""
    plan = {"*_proj.weight": option, "*norm.weight": "dense", "*embed_tokens.weight": "dense"}
    with trained(model, plan, seed=seed, total=steps) as t:
        train(model, t, rows(ids), Loop(steps=steps, rate=rate, batch=BATCH, seed=seed))
        made = {name: t.weight(name).detach() for name in t.places}
        count = sum(t.places[name].state["values" if option != "dense" else "weight"].numel() for name in t.places if "_proj" in name)
    with torch.no_grad():
        for name, weight in made.items():
            model.get_parameter(name).copy_(weight.view_as(model.get_parameter(name)))
    return count


def once(option: str, seed: int) -> dict[str, Any]:
    """What a way of two parts reaches, and what it multiplies in the blocks' layers, in units of their numbers."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(seed)
    model, (first, then) = LlamaForCausalLM(config(WIDTH)).eval(), option.split(", then ")
    early = trained_on(model, PLANS[first], text()[: FIRST * BATCH], FIRST, 3e-3, seed)
    late = trained_on(model, PLANS[then], windows("prose", "train", 64), THEN, 1e-3, seed)
    return {
        "loss": statistics.mean(losses(model, windows("prose", "test", 64)[:256]).tolist()),
        "multiply-adds per token of pre-training": 3 * early, "of fine-tuning": 3 * late,
    }  # fmt: skip


def main() -> None:
    kept, setting, table = Kept.of("S120"), CLAIM.setting, []
    for option in (setting.method, *setting.baselines, *setting.beside):
        found = [kept(f"{option}, seed {seed}", functools.partial(once, option, seed)) for seed in setting.seeds]
        table.append({"option": option, **{name: [each[name] for each in found] for name in found[0]}})
    gains = [b - a for a, b in zip(table[0]["loss"], table[1]["loss"])]
    behind = [a - b for a, b in zip(table[0]["loss"], table[2]["loss"])]
    pre = "multiply-adds per token of pre-training"
    conditions = {
        f"within {NEAR:g} nats of dense pre-training": statistics.mean(behind) <= NEAR,
        "a quarter of the multiply-adds in pre-training": table[0][pre][0] <= 0.26 * table[2][pre][0],
    }
    show(result(CLAIM, kept, table, gains, {"loss above that of dense pre-training": behind}, conditions, DATA))


if __name__ == "__main__":
    main()
