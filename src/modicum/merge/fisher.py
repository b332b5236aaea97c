"""Fisher merging."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from modicum.core.method import Paper
from modicum.merge._family import At, Merge


@dataclass(frozen=True, kw_only=True)
class Fisher(Merge):
    """The mean of the models, entry by entry by how much each model's likelihood feels the entry.

    ``Σ w_i F_i W_i / Σ w_i F_i`` with ``F_i`` the mean square of the gradient of the log-likelihood on the model's own data: the mode of the product
    of the models' posteriors, each taken for a Gaussian. Where no model feels an entry the mean is taken.

    *Shapes:* tensors of one shape; statistics ``name/fisher`` of that shape.

    *Needs and cost:* statistics of each model's data, which come beside the tensors; one division an entry.

    *Reduces to:* ``average`` where all feel alike.

    *Raises:* ``SettingError`` without statistics, and for weights that are no shares.

    *Differences from the paper:* nothing is added to the statistics: no entry is too small to count.

    Example:
        >>> at = At("w", (1,), (1.0, 1.0), beside=({"fisher": torch.tensor([3.0])}, {"fisher": torch.tensor([1.0])}))
        >>> Fisher().combine(torch.zeros(1), [torch.tensor([4.0]), torch.tensor([0.0])], [1.0, 1.0], at)
        tensor([3.])

    """

    paper: ClassVar[Paper | None] = Paper(
        title="Merging Models with Fisher-Weighted Averaging", arxiv="2111.09832", year=2021, authors="Michael Matena and Colin Raffel"
    )
    shares: ClassVar[bool] = True
    reads_base: ClassVar[bool] = False
    statistics: ClassVar[tuple[str, ...]] = ("fisher",)

    @override
    def combine(self, base: torch.Tensor, others: Sequence[torch.Tensor], weights: Sequence[float], at: At) -> torch.Tensor:
        found = at.statistic("fisher") or [torch.ones_like(other) for other in others]
        shares = [
            weight * fisher.to(other.dtype).reshape(other.shape).clamp(min=0) for other, weight, fisher in zip(others, weights, found)
        ]
        total = torch.stack(shares).sum(0)
        made = torch.zeros_like(others[0])
        for other, share, weight in zip(others, shares, weights):
            made.addcmul_(torch.where(total > 0, share / total, weight / sum(weights)), other)
        return made
