"""What rows beside language models share: a plain loop over a trained context, and rates that are chosen on validation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from kept import Kept
from modicum.train.trained import Trained

CHOOSING = 1000


def learn(t: Trained, batches: Iterable[Any], loss: Callable[[torch.nn.Module, Any], torch.Tensor], rate: float, steps: int) -> float:
    """AdamW under a cosine; the mean loss of the last tenth of the updates."""
    optimizer, losses = torch.optim.AdamW(t.parameters(), lr=rate, weight_decay=0.0), []
    pace = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _, batch in zip(range(steps), batches):
        found = loss(t.module, batch)
        total = found if (penalty := t.penalty()) is None else found + penalty
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(t.parameters(), 1.0)
        optimizer.step()
        pace.step()
        t.revise(optimizer)
        losses.append(found.item())
    last = losses[-max(1, steps // 10) :]
    return sum(last) / len(last)


def at_best(
    kept: Kept, name: str, once: Callable[..., dict[str, Any]], rates: Sequence[float], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """What ``once(rate, seed, part)`` gives on the test part, by seed, at the rate of least ``score`` on validation by a seed of its own."""
    tried = {rate: kept(f"{name}, rate {rate:g}", functools.partial(once, rate, CHOOSING, "validation"))["score"] for rate in rates}
    rate = min(tried, key=tried.__getitem__)
    work = lambda seed: functools.partial(once, rate, seed, "test")
    return [kept(f"{name}, rate {rate:g}, seed {seed}", work(seed)) | {"rate": rate} for seed in seeds]
