"""Sparse model soups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from modicum.core.errors import ModelError
from modicum.core.method import Paper
from modicum.merge._family import At, Merge, mixed


@dataclass(frozen=True, kw_only=True)
class SparseSoup(Merge):
    """The mean of models that were retrained under one mask, which stays that mask.

    ``Σ w_i W_i / Σ w_i``, where every model has its zeros at the same places; the mean of models with other masks would be denser than each.
    The recipe alternates: prune the mean, retrain copies of it, and make their mean.

    *Shapes:* tensors of one shape.

    *Needs and cost:* no data; one comparison and one multiplication for each entry of each model.

    *Reduces to:* ``average``, where nothing is zero.

    *Raises:* ``ModelError`` naming a tensor whose zeros differ from the base's, which carries the mask; ``SettingError`` for weights that are
    no shares.

    *Differences from the paper:* retraining is the loop's business.

    Example:
        >>> at = At("w", (2,), (1.0, 1.0))
        >>> SparseSoup().combine(torch.tensor([1.0, 0.0]), [torch.tensor([2.0, 0.0]), torch.tensor([4.0, 0.0])], [1.0, 1.0], at)
        tensor([3., 0.])

    """

    paper: ClassVar[Paper | None] = Paper(
        title="Sparse Model Soups: A Recipe for Improved Pruning via Model Averaging",
        arxiv="2306.16788",
        year=2023,
        authors="Max Zimmer and Christoph Spiegel and Sebastian Pokutta",
    )
    shares: ClassVar[bool] = True

    @override
    def combine(self, base: torch.Tensor, others: Sequence[torch.Tensor], weights: Sequence[float], at: At) -> torch.Tensor:
        zero = base == 0
        for place, other in enumerate(others):
            if bool((other[zero] != 0).any()):
                raise ModelError(f"{at.name}: model {place + 1} must be zero where the base is, is not. Retrain it under the base's mask.")
        total = sum(weights)
        return mixed(others, [weight / total for weight in weights])
