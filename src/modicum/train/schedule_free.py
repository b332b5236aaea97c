"""AdamW without a schedule: what is learnt is an average of where the steps led, at every update."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch


class ScheduleFree(torch.optim.Optimizer):
    """Gradients are taken at ``y``, between the point ``z`` that steps lead to and the average ``x`` of all such points (arXiv 2405.15682).

    ``y = (1 - β₁) z + β₁ x`` stands in the parameters while training goes on; ``settle`` puts ``x`` there, which is what was learnt. So no end has to
    be known beforehand. An average weighs each point by the square of the largest rate so far.
    """

    def __init__(
        self, parameters: Iterable[Any], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):  # fmt: skip
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "highest": 0.0, "weighed": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of ``z``, and of ``x`` and ``y`` with it."""
        for group in self.param_groups:
            rate, (first, second) = group["lr"], group["betas"]
            group["highest"] = max(group["highest"], rate)
            group["weighed"] += group["highest"] ** 2
            share = group["highest"] ** 2 / group["weighed"] if group["weighed"] else 1.0
            for y in group["params"]:
                if y.grad is None:
                    continue
                state = self.state[y]
                if not state:
                    state.update(step=0, point=y.detach().clone(), squares=torch.zeros_like(y))
                state["step"] += 1
                state["squares"].mul_(second).addcmul_(y.grad, y.grad, value=1 - second)
                size = state["squares"].div(1 - second ** state["step"]).sqrt_().add_(group["eps"])
                slope = y.grad.div(size).add_(y, alpha=group["weight_decay"])
                y.lerp_(state["point"], share).add_(slope, alpha=rate * (first * (1 - share) - 1))
                state["point"].sub_(slope, alpha=rate)

    @torch.no_grad()
    def settle(self) -> None:
        """Put ``x`` in the parameters' place: the end of a training."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter in self.state:
                    parameter.lerp_(self.state[parameter]["point"], 1 - 1 / group["betas"][0])
