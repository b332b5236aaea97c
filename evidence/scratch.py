"""What the rows on training from nothing share: small decoders of one shape, whose layers are made as a plan says, on Python's library."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from kept import Kept
from modicum.train.loop import train
from modicum.train.settings import Loop
from modicum.train.trained import trained
from scenes.decoder import config, text
from scenes.domains import losses, windows

STEPS, BATCH, TOKENS, HELD = 100, 8, 128, 64
RATES, CHOOSING, TRIED = (3e-3, 1e-2), 1000, 40
DATA = (
    f"Decoders of four layers learn Python's library in {STEPS} updates of {BATCH} windows of {TOKENS} tokens, and are judged on {HELD} windows of "
    f"modules that none has seen; each at the best of {len(RATES)} rates on as many validation windows, found in {TRIED} updates"
)


@functools.cache
def part(name: str, steps: int = STEPS) -> torch.Tensor:
    """Windows of sources, for training as many as so many updates take."""
    return text(TOKENS)[: steps * BATCH] if name == "train" else windows("sources", name, TOKENS)[:HELD]


def once(option: str, width: int, rate: float, seed: int, steps: int, judged: str) -> dict[str, Any]:
    """Train a decoder whose blocks' layers are made by an option, and all else plainly; held-out losses, numbers, bytes of the layers, seconds."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(seed)
    model = LlamaForCausalLM(config(width)).eval()
    plan = {"*_proj.weight": option, "*norm.weight": "dense", "*embed_tokens.weight": "dense"}
    with trained(model, plan, seed=seed, total=steps, scratch=option != "dense") as t:
        start = time.process_time()
        rows = [{"input_ids": each[None]} for each in part("train", max(steps, STEPS))]
        curve = train(model, t, rows, Loop(steps=steps, rate=rate, batch=BATCH, seed=seed))
        forms = t.forms()
        return {
            "loss": losses(model, part(judged)).tolist(), "trained": t.count, "curve": curve, "seconds": time.process_time() - start,
            "bytes": sum(form.nbytes for name, form in forms.items() if "_proj" in name),
        }  # fmt: skip


def reached(kept: Kept, option: str, width: int, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """What an option reaches, seed by seed, at its rate."""
    score = lambda rate: statistics.mean(once(option, width, rate, CHOOSING, TRIED, "validation")["loss"])
    tried = {rate: kept(f"{option}, width {width}, rate {rate:g}", functools.partial(score, rate)) for rate in RATES}
    rate = min(tried, key=tried.__getitem__)
    work = lambda seed: functools.partial(once, option, width, rate, seed, STEPS, "test")
    return [kept(f"{option}, width {width}, rate {rate:g}, seed {seed}", work(seed)) | {"rate": rate} for seed in seeds]


def row(option: str, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One option's numbers, seed by seed."""
    return {
        "option": option,
        "loss": [statistics.mean(each["loss"]) for each in found],
        "trained": [each["trained"] for each in found],
        "bytes of the layers": [each["bytes"] for each in found],
        "rate": [each["rate"] for each in found],
        "seconds": [round(each["seconds"], 1) for each in found],
    }
