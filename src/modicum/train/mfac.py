"""M-FAC's dynamic half: gradient descent under the inverse of an empirical Fisher information of the last gradients, which is never made."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from modicum.core.errors import SettingError
from modicum.core.finite import finite


class Mfac(torch.optim.Optimizer):
    """Descend along ``λ (λ I + Gᵀ G / m)⁻¹ g``, where the rows of G are the last m gradients of all parameters together (Frantar, Kurtic and
    Alistarh 2021, M-FAC, arXiv 2107.03356).

    By Woodbury's identity that is ``g - Gᵀ (m λ I + G Gᵀ)⁻¹ G g``: what earlier gradients point along again and again is held back, all else moves as
    by plain gradient descent. ``G Gᵀ`` is brought up to date by one product with the new gradient. λ is ``damping`` times the mean squared norm
    of the gradients kept, so that neither the scale of a loss nor the number of parameters counts.

    *Shapes*: parameters of any shape; the window (m, numbers), float32. *Needs and cost*: m gradients in memory, two products with them and
    a solve of m equations at each step. *Reduces to*: gradient descent with momentum where ``damping`` is large. *Raises*:
    ``SettingError`` for settings out of bounds, and for a gradient that is not finite.

    *Differences from the paper*: the direction is scaled by λ, so that a rate means what it means without it; weight decay is added to the step.

    *Example*:
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
        >>> optimizer = Mfac([weight], lr=0.1, window=4, damping=0.01)
        >>> for _ in range(200):
        ...     weight.grad = torch.tensor([100.0, 1.0]) * weight.detach()
        ...     optimizer.step()
        >>> bool(weight.abs().max() < 0.1)
        True

    """

    def __init__(
        self, params: Iterable[Any], lr: float = 0.1, *, window: int = 32, damping: float = 1.0, momentum: float = 0.9, weight_decay: float = 0.0
    ):  # fmt: skip
        if not (lr >= 0 and window >= 1 and damping > 0 and 0 <= momentum < 1 and weight_decay >= 0):
            raise SettingError(
                f"mfac: lr and weight_decay must be 0 or more, window 1 or more, damping above 0 and momentum below 1; came {lr}, {weight_decay}, "
                f"{window}, {damping} and {momentum}."
            )
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.window, self.damping = window, damping

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; a ``closure`` makes the loss and its gradients anew."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        moving = [(group, one) for group in self.param_groups for one in group["params"] if one.grad is not None]
        if not moving:
            return loss
        gradient = torch.cat([one.grad.reshape(-1).float() for _, one in moving])
        if not finite(gradient):
            raise SettingError("mfac: gradients must be finite, hold NaN or Inf. Lower the rate, or clip.")
        direction, low = self._direction(gradient, moving[0][1]), 0
        for group, one in moving:
            high = low + one.numel()
            state = self.state[one]
            move = direction[low:high].view_as(one).to(one.dtype).add(one, alpha=group["weight_decay"])
            state["momentum"] = move if "momentum" not in state else state["momentum"].mul_(group["momentum"]).add_(move)
            one.sub_(group["lr"] * state["momentum"])
            low = high
        return loss

    def _direction(self, gradient: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        """The gradient as the window, which takes it in, lets it pass; what is kept lies with the ``first`` parameter, for ``state_dict``."""
        state = self.state[first]
        if "window" not in state or state["window"].shape[1] != len(
            gradient
        ):  # others move now: what they were felt by says nothing of these
            state["window"], state["seen"] = gradient.new_zeros(self.window, len(gradient)), 0
            state["gram"] = gradient.new_zeros(self.window, self.window, dtype=torch.float64)
        kept, gram, place = state["window"], state["gram"], int(state["seen"]) % self.window
        kept[place] = gradient
        products = (kept @ gradient).double()
        gram[place], gram[:, place] = products, products
        state["seen"] = int(state["seen"]) + 1
        count = min(state["seen"], self.window)
        least = self.damping * float(gram.diagonal()[:count].mean())
        if not least:
            return gradient
        known = gram[:count, :count] + count * least * torch.eye(count, dtype=torch.float64, device=gram.device)
        return gradient - torch.linalg.solve(known, products[:count]).float() @ kept[:count]
