"""What recipes share: plain updates of a module, in a loop that no change of the package touches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn


def fitted(module: nn.Module, batches: Iterable[Any], loss: Callable[[nn.Module, Any], torch.Tensor], rate: float, steps: int) -> float:
    """Train by AdamW under a cosine with a tenth of warm-up, one batch an update; the mean loss of the last tenth."""
    optimizer, losses = torch.optim.AdamW(module.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.1), []
    warm = max(1, steps // 10)
    pace = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * max(0, step - warm) / max(1, steps - warm)))
    )
    module.train()
    for _, batch in zip(range(steps), batches):
        found = loss(module, batch)
        optimizer.zero_grad()
        found.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        pace.step()
        losses.append(found.item())
    module.eval()
    last = losses[-max(1, steps // 10) :]
    return sum(last) / len(last)


def drawn(rows: int, batch: int, seed: int) -> Iterable[torch.Tensor]:
    """Places of batches without end, each pass over all rows in an order of its own."""
    chance = torch.Generator().manual_seed(seed)
    while True:
        yield from (places for places in torch.randperm(rows, generator=chance).split(batch) if len(places) == min(batch, rows))


def next_token(module: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the next token over rows (rows, tokens) of ids."""
    return module(input_ids=rows, labels=rows, use_cache=False).loss


def classes(module: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Cross-entropy of classes; a model of Transformers or a module that gives logits."""
    found = module(batch[0])
    return nn.functional.cross_entropy(getattr(found, "logits", found), batch[1])
