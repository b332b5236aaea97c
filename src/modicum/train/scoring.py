"""Passes before the first update, in which methods that choose at the start see gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import nn

from modicum.data.splits import Batch, call
from modicum.sweep.modes import seeded
from modicum.sweep.outputs import output_tensor
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
    flows = any(getattr(place.method, "flows", False) for place in trained.places.values())

    def loss() -> torch.Tensor:
        if flows:
            return _flow(module, parts[0])
        with seeded(seed_of(seed, "scores")):
            found = [objective(module, part) for part in parts]
        return torch.stack([losses.sum() for losses, _ in found]).sum() / max(1, sum(count for _, count in found))

    module.train(not flows)
    try:
        scored(trained, loss)
    finally:
        module.eval()


def _flow(module: nn.Module, batch: Batch) -> torch.Tensor:
    """What comes out of ones, summed; inputs that are no floats stay."""
    ones = lambda value: torch.ones_like(value) if value.is_floating_point() else value
    given: Batch = {name: ones(value) for name, value in batch.items()} if isinstance(batch, dict) else tuple(map(ones, batch))
    return output_tensor(call(module, given))[0].float().sum()
