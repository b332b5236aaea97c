"""Passes before the first update, in which methods that choose at the start see gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import nn

from modicum.data.splits import Batch
from modicum.sweep.modes import seeded
from modicum.sweep.stage import seed_of
from modicum.train.loop import joined
from modicum.train.objectives import Objective, next_token
from modicum.train.trained import Trained


def scored(trained: Trained, loss: Callable[[], torch.Tensor]) -> None:
    """Let methods that choose before training do so: ``loss()`` runs the module, once for each look that one of them takes.

    To be called before an optimizer is made: what is trained may have another shape afterwards.
    """
    looks = max((place.method.looks for place in trained.places.values()), default=0)
    for number in range(-looks, 0):
        trained.step = replace(trained.step, number=number)
        loss().backward()
        for parameter in trained.parameters():
            parameter.grad = None
        trained.revise()
    trained.step = replace(trained.step, number=0)


def scored_on(
    module: nn.Module, trained: Trained, rows: Sequence[Batch], *, batch: int = 8, objective: Objective = next_token, seed: int = 0
) -> None:
    """The same with the loss per token over rows, ``batch`` of them at a time; chance is drawn alike in every look."""
    parts = joined(rows, batch)

    def loss() -> torch.Tensor:
        with seeded(seed_of(seed, "scores")):
            found = [objective(module, part) for part in parts]
        return torch.stack([losses.sum() for losses, _ in found]).sum() / max(1, sum(count for _, count in found))

    module.train()
    try:
        scored(trained, loss)
    finally:
        module.eval()
