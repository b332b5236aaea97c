"""The weighted mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from modicum.core.method import Paper
from modicum.merge._linear import Linear


@dataclass(frozen=True, kw_only=True)
class Average(Linear):
    """The mean of the models, by their weights.

    ``Σ w_i W_i / Σ w_i``: the base gives layout and tokenizer, and no value; list it among the models where it is to count.

    *Shapes:* tensors of one shape.

    *Needs and cost:* no data; one multiplication for each entry of each model.

    *Reduces to:* the model, where there is one.

    *Raises:* ``SettingError`` for negative weights, or weights whose sum is 0.

    *Differences from the paper:* the models come from anywhere, not from one run's last steps.

    Example:
        >>> Average().coefficients([1.0, 3.0], torch.empty(0, 0))
        (0.0, 0.25, 0.75)

    """

    paper: ClassVar[Paper | None] = Paper(
        title="Averaging Weights Leads to Wider Optima and Better Generalization",
        arxiv="1803.05407",
        year=2018,
        authors="Pavel Izmailov and Dmitrii Podoprikhin and Timur Garipov and Dmitry Vetrov and Andrew Gordon Wilson",
    )
    shares: ClassVar[bool] = True
    reads_base: ClassVar[bool] = False

    @override
    def coefficients(self, weights: Sequence[float], gram: torch.Tensor) -> Sequence[float]:
        total = sum(weights)
        return (0.0, *(weight / total for weight in weights))
