"""A product of thin factors beside a whole one, in as few passes over what is large as there can be."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


def beside(x: torch.Tensor, weight: torch.Tensor | None, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """``x @ weight.T + (x @ right.T) @ left.T`` for x (..., columns), weight (rows, columns) that asks for no gradient, left (rows, rank) and right
    (rank, columns), all of one dtype; without a weight the second product alone.

    The second product is added as it is made, forward and in the gradient of x, so that no third matrix of that size is written and read. What is
    thin is computed lying, (rank, tokens), and the gradient of left with it: the same product standing takes up to sixty times as long.
    """
    return _Beside.apply(x, weight, left, right)


class _Beside(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor | None, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        thin = right @ flat.T
        ctx.save_for_backward(x, weight, left, right, thin)
        made = thin.T @ left.T if weight is None else F.linear(flat, weight).addmm_(thin.T, left.T)
        return made.reshape(*x.shape[:-1], len(left))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, None, torch.Tensor | None, torch.Tensor | None]:
        x, weight, left, right, thin = ctx.saved_tensors
        whole, _, first, second = ctx.needs_input_grad
        flat, gradient = x.reshape(-1, x.shape[-1]), gradients[0].reshape(-1, len(left))
        if torch.is_grad_enabled():
            thin = right @ flat.T  # made again: a gradient of this gradient then knows what it is made of
        through = left.T @ gradient.T if whole or second else gradient
        to_x = None
        if whole:
            to_x = (through.T @ right if weight is None else (gradient @ weight).addmm_(through.T, right)).reshape(x.shape)
        return to_x, None, (thin @ gradient).T if first else None, through @ flat if second else None
