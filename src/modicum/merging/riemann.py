"""What an edit of weights does to a loss, told from gradients along the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.func import functional_call

from modicum.core.errors import SettingError

Loss = Callable[[Callable[..., object]], torch.Tensor]
"""Of a function that computes as the module does the loss on some data."""


def predicted(
    module: nn.Module, before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor], loss: Loss, points: int = 4
) -> float:
    """By how much the loss changes where tensors are those ``after`` an edit instead of ``before``: ``Σ_c <δ, ∇L(W + c δ)> / points``.

    The middle of each of ``points`` parts of the way is looked at, so that the sum is exact for a loss that is quadratic along it. ``loss`` calls
    what it is given as it would call the module. Tang et al. (2024, "A Unified View of Delta Parameter Editing") call an edit competitive, decreased
    or improved by the sign and size of this. Costs ``points`` gradients. Raises ``SettingError`` for a number of points below 1.
    """
    if points < 1:
        raise SettingError(f"points: must be 1 or more, is {points}.")
    change = {name: (after[name] - value).float() for name, value in before.items() if value.is_floating_point()}
    total = 0.0
    for place in range(points):
        share = (place + 0.5) / points
        there = {name: (before[name].float() + share * each).requires_grad_() for name, each in change.items()}
        rest = {name: value for name, value in before.items() if name not in there}
        found = loss(lambda *args, there=there, rest=rest, **kwargs: functional_call(module, {**there, **rest}, args, kwargs))
        gradients = torch.autograd.grad(found, list(there.values()), allow_unused=True)
        total += sum(float((change[name] * each).sum()) for name, each in zip(there, gradients) if each is not None)
    return total / points
