"""What merges have in common that solve a system of the models' inputs for a matrix, and average all else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from modicum.merge._family import At, Merge, mixed


@dataclass(frozen=True, kw_only=True)
class Solved(Merge):
    """A matrix of products ``G_i = X_iᵀ X_i`` of each model's inputs, which come beside the tensors; files say what is ``solved``."""

    known_gaps: ClassVar[dict[str, str]] = {
        "one model": "a system is solved, which rounds",
        "equal models": "a system is solved, which rounds",
    }
    pieces: ClassVar[bool] = False
    shares: ClassVar[bool] = True
    reads_base: ClassVar[bool] = False
    statistics: ClassVar[tuple[str, ...]] = ("gram",)

    def solved(
        self, others: Sequence[torch.Tensor], weights: Sequence[float], grams: Sequence[torch.Tensor], mean: torch.Tensor
    ) -> torch.Tensor:
        """The matrix (rows, columns) that is made of the models' and their ``grams`` (columns, columns) float64; ``mean`` is theirs by weight."""
        raise NotImplementedError

    @override
    def combine(self, base: torch.Tensor, others: Sequence[torch.Tensor], weights: Sequence[float], at: At) -> torch.Tensor:
        total = sum(weights)
        mean = mixed(others, [weight / total for weight in weights])
        grams = at.statistic("gram") if base.ndim == 2 else None
        return mean if grams is None else self.solved(others, weights, [gram.double() for gram in grams], mean).to(mean.dtype)


def solution(gram: torch.Tensor, products: torch.Tensor) -> torch.Tensor:
    """``X`` with ``X gram = products``, of the least norm where several are."""
    return torch.linalg.lstsq(gram, products.T, driver="gelsd").solution.T
