"""RegMean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.settings import param
from modicum.merge._solved import Solved, solution


@dataclass(frozen=True, kw_only=True)
class Regmean(Solved):
    """Of all matrices the one whose outputs on every model's own inputs are nearest to that model's, in closed form.

    ``W = (Σ w_i W_i G_i) (Σ w_i G_i)⁻¹`` with ``G_i = X_iᵀ X_i`` of a linear layer's inputs, whose entries off the diagonal are multiplied by
    ``off``. What has no such statistics is averaged.

    *Shapes:* matrices (rows, columns); statistics ``name/gram`` (columns, columns).

    *Needs and cost:* statistics of each model's data, which come beside the tensors; one solve of columns³ for each matrix; whole tensors.

    *Reduces to:* ``average`` where all inputs are alike, and for what has no statistics.

    *Raises:* ``SettingError`` without statistics, and for weights that are no shares.

    *Differences from the paper:* directions that no input has come from the mean of the models.

    Example:
        >>> from modicum.merge._family import At
        >>> grams = ({"gram": torch.diag(torch.tensor([1.0, 0.0]))}, {"gram": torch.diag(torch.tensor([0.0, 1.0]))})
        >>> at = At("w", (1, 2), (1.0, 1.0), beside=grams)
        >>> Regmean().combine(torch.zeros(1, 2), [torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])], [1.0, 1.0], at)
        tensor([[1., 4.]])

    """

    paper: ClassVar[Paper | None] = Paper(
        title="Dataless Knowledge Fusion by Merging Weights of Language Models",
        arxiv="2212.09849",
        year=2022,
        authors="Xisen Jin and Xiang Ren and Daniel Preotiuc-Pietro and Pengxiang Cheng",
    )

    off: float = param(0.9, "what entries off the diagonal are multiplied by", between=(0.0, 1.0))

    @override
    def solved(
        self, others: Sequence[torch.Tensor], weights: Sequence[float], grams: Sequence[torch.Tensor], mean: torch.Tensor
    ) -> torch.Tensor:
        lowered = [weight * self._lowered(gram) for weight, gram in zip(weights, grams)]
        missed = torch.stack([(other.double() - mean.double()) @ gram for other, gram in zip(others, lowered)]).sum(0)
        return mean + solution(torch.stack(lowered).sum(0), missed).to(mean.dtype)

    def _lowered(self, gram: torch.Tensor) -> torch.Tensor:
        return self.off * gram + (1 - self.off) * gram.diagonal().diag()
