"""Gradients of a task that spare what a model knew before (R-AMT's gradient dropout, arXiv 2307.15049)."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def guided(special: torch.Tensor, general: torch.Tensor, parameters: Sequence[torch.Tensor], chance: torch.Generator) -> None:
    """Give parameters the gradient of a ``special`` loss, entry by entry dropped by chance where it opposes that of a ``general`` one.

    An entry is kept with probability ``(1 + sign(s) · (s + g) / (|s| + |g|)) / 2`` of its two gradients s and g: surely where they agree, half the
    time where the general one is as large against it. In the place of ``backward``; what the special loss does not feel has none.
    """
    mine = torch.autograd.grad(special, parameters, retain_graph=True, allow_unused=True)
    theirs = torch.autograd.grad(general, parameters, allow_unused=True)
    for parameter, one, other in zip(parameters, mine, theirs):
        if one is None:
            parameter.grad = None
            continue
        against = torch.zeros_like(one) if other is None else other
        size = (one.abs() + against.abs()).clamp_min(torch.finfo(one.dtype).tiny)
        kept = (1 + one.sign() * (one + against) / size) / 2
        parameter.grad = one * (torch.rand(one.shape, generator=chance) < kept)
