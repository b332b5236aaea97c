"""What trains within a form that is there already."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from typing_extensions import override

from modicum.core.parametrization import State, Step
from modicum.restrict._family import Restriction

if TYPE_CHECKING:
    from modicum.forms import Form


@dataclass(frozen=True, kw_only=True)
class Healer(Restriction):
    """Goes on from a form, whose bytes stay: the weight that is computed with is exact, and made anew in the backward pass."""

    # As healing itself has it.
    rate: ClassVar[float] = 5e-3

    def suits(self, stored: Form) -> bool:
        """Whether training can go on from what a unit is stored as."""
        raise NotImplementedError

    @override
    def product(self, base: Form | None, state: State, x: torch.Tensor, step: Step) -> torch.Tensor | None:
        names = [*state.trained]
        make = lambda *tensors: self.weight(None, state.having(dict(zip(names, tensors))), step)
        made: torch.Tensor = _Remade.apply(x, make, *state.trained.values())
        return made


def straight(latent: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    """``rounded`` to the bit, with the gradient of ``latent``, of the same shape."""
    made: torch.Tensor = _Straight.apply(latent, rounded)
    return made


def size_of(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """What a step of a stored number is counted in: a scale's magnitude, or the root mean square of all numbers of its tensor."""
    if name.rpartition(".")[2] == "scale":
        return tensor.float().abs()
    root = tensor.float().square().mean().sqrt() if tensor.numel() else torch.zeros(())
    return torch.where(root > 0, root, 1.0)


def rounded(stored: Form, numbers: Mapping[str, torch.Tensor]) -> Form:
    """What is stored with these numbers, in the dtypes of those that were there."""
    return stored.having({name: numbers[name].detach().to(before.dtype) for name, before in stored.movable().items()})


class _Remade(torch.autograd.Function):
    """``x @ make(*tensors).T`` whose backward pass makes the weight again instead of keeping it and what it is made of."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, make: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
        ctx.make = make
        ctx.save_for_backward(x, *tensors)
        return x @ make(*tensors).to(x.dtype).T

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        x, *tensors = ctx.saved_tensors
        with torch.enable_grad():
            leaves = [tensor.detach().requires_grad_() for tensor in tensors]
            weight = ctx.make(*leaves)
        to_inputs = gradient @ weight.detach().to(gradient.dtype) if ctx.needs_input_grad[0] else None
        felt = gradient.reshape(-1, gradient.shape[-1]).T @ x.reshape(-1, x.shape[-1]).to(gradient.dtype)
        return to_inputs, None, *torch.autograd.grad(weight, leaves, felt.to(weight.dtype))


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, latent: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
        return rounded.clone()

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        return gradient, None
