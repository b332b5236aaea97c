"""Task arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.settings import param
from modicum.merge._linear import Linear


@dataclass(frozen=True, kw_only=True)
class TaskArithmetic(Linear):
    """What each model changes of the base is added to it.

    ``W_0 + scale · Σ w_i (W_i - W_0)``: a negative weight takes away what a model learnt.

    *Shapes:* tensors of one shape.

    *Needs and cost:* no data; one multiplication for each entry of each model and the base.

    *Reduces to:* the model, where there is one with weight and scale 1.

    *Raises:* nothing of its own.

    *Differences from the paper:* each model has a weight of its own beside the common scale.

    Example:
        >>> TaskArithmetic(scale=0.5).coefficients([1.0, -1.0], torch.empty(0, 0))
        (1.0, 0.5, -0.5)

    """

    paper: ClassVar[Paper | None] = Paper(
        title="Editing Models with Task Arithmetic",
        arxiv="2212.04089",
        year=2022,
        authors="Gabriel Ilharco and Marco Tulio Ribeiro and Mitchell Wortsman and Suchin Gururangan and Ludwig Schmidt and Hannaneh Hajishirzi and "
        "Ali Farhadi",
    )

    scale: float = param(1.0, "what the sum of all changes is multiplied by", between=(-1e6, 1e6))

    @override
    def coefficients(self, weights: Sequence[float], gram: torch.Tensor) -> Sequence[float]:
        scaled = [self.scale * weight for weight in weights]
        return (1.0 - sum(scaled), *scaled)
