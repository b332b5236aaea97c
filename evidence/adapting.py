"""What the rows on adapters share: one method trained beside the small decoder on prose, at the rate that suits it best on validation."""

from __future__ import annotations

import functools
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from kept import Kept
from modicum.core.errors import ModelError
from modicum.train.loop import train
from modicum.train.objectives import next_token
from modicum.train.settings import Loop
from modicum.train.trained import Trained, trained
from scenes.decoder import decoder
from scenes.domains import losses, opened, windows

# Updates, windows in each, tokens in a window; rates that each method is tried at, in half the updates of a seed of their own.
STEPS, BATCH, TOKENS = 60, 8, 64
RATES = (1e-3, 2e-3, 5e-3, 1e-2, 2e-2)
CHOOSING = 1000
# Windows that rates are chosen on, and that are reported on.
_VALIDATION, _TEST = 96, 256


def data(rates: int) -> str:
    """What was trained and judged on, and how many rates each method was tried at, at least."""
    return (
        f"The decoder of `evidence/scenes`, trained on sources, learns prose in {STEPS} updates of {BATCH} windows of {TOKENS} tokens, and is judged "
        f"on {_TEST} windows of help topics that it has not seen; each method at its best of {rates} rates or more "
        f"on {_VALIDATION} validation windows"
    )


DATA = data(len(RATES))

Plan = str | Mapping[str, str]


def shared() -> Kept:
    """Steps that several rows use."""
    return Kept.of("shared-adapters")


@functools.cache
def part(name: str, count: int | None = None) -> torch.Tensor:
    """Windows of prose."""
    return windows("prose", name, TOKENS)[:count]


def rows(ids: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """Sequences as the loop takes them."""
    return [{"input_ids": each[None]} for each in ids]


def once(
    plan: Plan, rate: float, seed: int, steps: int = STEPS, judged: str = "test", width: int = 128, seen: Callable[[Trained], Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train a plan beside the decoder of a width.

    Gives the loss of each window that is judged on, the loss of every update, the numbers trained, bytes stored and kept to train (values, gradients
    and moments in float32, and what one update's forward keeps), seconds, and what ``seen`` sees of it.
    """
    module = opened(decoder(width=width) if width != 128 else decoder())
    with trained(module, plan, seed=seed, total=steps) as t:
        memory, start = 16 * t.count + _saved(module), time.process_time()
        curve = train(module, t, rows(part("train")), Loop(steps=steps, rate=rate, batch=BATCH, seed=seed))
        seconds = time.process_time() - start
        ids = part("test", _TEST) if judged == "test" else part("validation", _VALIDATION)
        found = {"loss": losses(module, ids).tolist(), "curve": curve, "trained": t.count, "bytes": t.delta().nbytes}
        return found | {"memory": memory, "seconds": seconds, "seen": None if seen is None else seen(t)}


def _saved(module: torch.nn.Module) -> int:
    """Bytes that one update's forward keeps for its backward, parameters apart."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), *module.buffers())}
    held: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found, _ = next_token(module, {"input_ids": part("train", BATCH)})
    del found
    return sum(held.values())


def chosen(kept: Kept, plan: Plan, rates: Sequence[float] = RATES, width: int = 128) -> float:
    """The rate of least validation loss."""
    found = {rate: kept(f"{plan}, width {width}, rate {rate:g}", functools.partial(_validated, plan, rate, width)) for rate in rates}
    return min(found, key=found.__getitem__)


def _validated(plan: Plan, rate: float, width: int) -> float:
    """Mean loss on validation windows; a rate at which a loss is no number is the last to be taken."""
    try:
        return statistics.mean(once(plan, rate, CHOOSING, STEPS // 2, "validation", width)["loss"])
    except ModelError:
        return sys.float_info.max


def adapted(
    kept: Kept,
    plan: Plan,
    seeds: Sequence[int],
    rates: Sequence[float] = RATES,
    width: int = 128,
    seen: Callable[[Trained], Any] | None = None,
) -> list[dict[str, Any]]:
    """What a method reaches at its rate, seed by seed."""
    rate = chosen(kept, plan, rates, width)
    of = f"{plan}, width {width}, rate {rate:g}" + (f", {seen.__name__}" if seen else "")
    return [
        kept(f"{of}, seed {seed}", functools.partial(once, plan, rate, seed, width=width, seen=seen)) | {"rate": rate} for seed in seeds
    ]


def row(plan: Plan, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One method's numbers, seed by seed."""
    return {
        "option": plan if isinstance(plan, str) else ", ".join(f"{pattern}: {option}" for pattern, option in plan.items()),
        "loss": means(found, "loss"),
        "loss while training": means(found, "curve"),
        "trained": [each["trained"] for each in found],
        "rate": [each["rate"] for each in found],
        "bytes kept to train": [each["memory"] for each in found],
        "seconds": [round(each["seconds"], 2) for each in found],
    }


def means(found: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """The mean of a list, seed by seed."""
    return [statistics.mean(each[name]) for each in found]


def before(width: int = 128) -> float:
    """Mean loss on the test windows before any training."""
    return float(losses(opened(decoder(width=width) if width != 128 else decoder()), part("test", _TEST)).mean())
