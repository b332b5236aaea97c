"""A product of thin factors beside a whole one, in as few passes over what is large as there can be."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


def beside(x: torch.Tensor, weight: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """``x @ weight.T + (x @ right.T) @ left.T`` for x (..., columns), weight (rows, columns) that asks for no gradient, left (rows, rank) and right
    (rank, columns), all of one dtype.

    The second product is added as it is made, forward and in the gradient of x, so that no third matrix of that size is written and read.
    """
    return _Beside.apply(x, weight, left, right)


class _Beside(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        ctx.save_for_backward(x, weight, left, right)
        return F.linear(flat, weight).addmm_(flat @ right.T, left.T).reshape(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, None, torch.Tensor | None, torch.Tensor | None]:
        x, weight, left, right = ctx.saved_tensors
        whole, _, first, second = ctx.needs_input_grad
        flat, gradient = x.reshape(-1, x.shape[-1]), gradients[0].reshape(-1, len(weight))
        through = gradient @ left if whole or second else gradient
        to_x = (gradient @ weight).addmm_(through, right).reshape(x.shape) if whole else None
        # What is thin is made again: a gradient of this gradient then knows what it is made of.
        return to_x, None, gradient.T @ (flat @ right.T) if first else None, through.T @ flat if second else None
