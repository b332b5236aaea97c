"""Single layer, single gradient: one layer takes one step along one gradient, and how far is searched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.settings import param
from modicum.forget.forgetter import Forgetter, Rows, gradient
from modicum.train.rows import losses


@dataclass(frozen=True, kw_only=True)
class Slug(Forgetter):
    """``W + step · G`` on one layer, with ``G`` the gradient of the loss on the rows to forget.

    Layers are told by two numbers: how important they are to what is forgotten, ``|G| / |W|``, and how much that goes against what is retained,
    the absolute cosine of both gradients. On each layer of the Pareto front the smallest step is found, by doubling and halving, that brings the
    loss of the rows to forget to that of a row that the model knows nothing of; the layer whose retained loss is then least is taken.

    *Needs and cost:* two gradients over all rows, then ``halvings`` forward passes of the rows to forget for each layer of the front.
    *Differs from the paper:* the layer is chosen by retained loss rather than by a validation task.
    """

    paper: ClassVar[Paper | None] = Paper(
        title="Single Layer Single Gradient Unlearning",
        arxiv="2407.11867",
        year=2024,
        authors="Zikui Cai and Yaoteng Tan and M. Salman Asif",
    )

    halvings: int = param(14, "steps of the search, first doubling, then halving", between=(1, 100))

    @override
    def forget(self, module: nn.Module, rows: Rows) -> None:
        forgets, retains = gradient(module, rows.forget, rows.loss), gradient(module, rows.retain, rows.loss)
        named = {name: parameter for name, parameter in module.named_parameters() if parameter.ndim > 1 and bool(forgets[name].any())}
        told = {name: _told(parameter, forgets[name], retains[name]) for name, parameter in named.items()}
        found: list[tuple[float, str, torch.Tensor]] = []
        for name in front(told):
            before = named[name].data
            step = self._searched(module, named[name], before, forgets[name], rows)
            named[name].data = before + step * forgets[name]
            reached = float(losses(module, rows.forget, rows.loss).mean()) >= rows.goal
            retained = float(losses(module, rows.retain, rows.loss).mean())
            found.append((retained if reached else retained + 1e6, name, named[name].data))
            named[name].data = before
        if found:
            _, name, value = min(found, key=lambda one: one[:2])
            with torch.no_grad():
                named[name].copy_(value)

    def _searched(self, module: nn.Module, parameter: nn.Parameter, before: torch.Tensor, direction: torch.Tensor, rows: Rows) -> float:
        """The smallest step that reaches the goal; the largest that was tried where none does."""

        def reaches(step: float) -> bool:
            parameter.data = before + step * direction
            return float(losses(module, rows.forget, rows.loss).mean()) >= rows.goal

        low, high = 0.0, 0.01 * float(before.norm() / direction.norm().clamp(min=1e-30))
        for _ in range(self.halvings):
            if reaches(high):
                break
            low, high = high, 2 * high
        for _ in range(self.halvings):
            middle = (low + high) / 2
            low, high = (low, middle) if reaches(middle) else (middle, high)
        return high


def front(told: dict[str, tuple[float, float]]) -> list[str]:
    """Names of (importance, alignment) that no other surpasses in both: more important, and less aligned."""
    beaten = lambda one: any(
        other[0] >= one[0] and other[1] <= one[1] and other != one for other in told.values()
    )  # fmt: skip
    return [name for name, one in told.items() if not beaten(one)]


def _told(parameter: torch.Tensor, forget: torch.Tensor, retain: torch.Tensor) -> tuple[float, float]:
    aligned = (forget * retain).sum().abs() / (forget.norm() * retain.norm()).clamp(min=1e-30)
    return float(forget.norm() / parameter.detach().norm().clamp(min=1e-30)), float(aligned)
