"""A forgetter: a value that says how a module comes to know less, and the rows that it works on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from modicum.core.errors import ModelError
from modicum.core.recipe import Recipe
from modicum.data.splits import Batch
from modicum.train.rows import Loss, drawn, together


@dataclass(frozen=True)
class Rows:
    """Rows to forget and rows to retain, batches of one row each that have one shape, and the loss of a batch's rows.

    ``goal`` is the loss of a row that a model knows nothing of: where searches and ascents end.
    """

    forget: Sequence[Batch]
    retain: Sequence[Batch]
    loss: Loss
    goal: float
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Forgetter(Recipe):
    """Root of all forgetters: frozen settings, and one function."""

    def forget(self, module: nn.Module, rows: Rows) -> None:
        """Change the parameters of ``module``, a working copy in float32 and evaluation mode, in place. There is a row to forget at least."""
        raise NotImplementedError


def gradient(module: nn.Module, rows: Sequence[Batch], loss: Loss) -> dict[str, torch.Tensor]:
    """The gradient of the mean loss of rows, by parameter."""
    named = dict(module.named_parameters())
    total = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
    for batch in together(rows):
        found = torch.autograd.grad(loss(module, batch).sum(), list(named.values()), allow_unused=True)
        for name, each in zip(named, found):
            if each is not None:
                total[name] += each
    return {name: each / max(1, len(rows)) for name, each in total.items()}


def updated(
    module: nn.Module, count: int, objective: Callable[[list[int], int], torch.Tensor], *, steps: int, rate: float, batch: int, seed: int,
    masks: dict[str, torch.Tensor] | None = None, until: Callable[[], bool] | None = None,
) -> None:  # fmt: skip
    """Update all parameters by Adam: ``objective(places, step)`` of places among ``count`` rows is minimized.

    Where there are ``masks``, what they leave out stays 0; ``until`` is asked after every step whether to stop. The rate falls to 0 linearly, unless
    it is asked. Raises ``ModelError`` at a loss that is no number.
    """
    optimizer = torch.optim.Adam(module.parameters(), lr=rate)
    named = dict(module.named_parameters())
    for step, places in zip(range(steps), drawn(count, min(batch, count), seed)):
        for group in optimizer.param_groups:
            group["lr"] = rate if until is not None else rate * (1 - step / steps)
        optimizer.zero_grad()
        value = objective(places, step)
        if not math.isfinite(float(value.detach())):
            raise ModelError(f"forgetting: the loss must be a number, is {float(value.detach())} at step {step + 1}. Lower the rate.")
        value.backward()
        optimizer.step()
        for name, mask in (masks or {}).items():
            named[name].data.mul_(mask)
        if until is not None and until():
            return
