"""Analytic federated learning."""

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
class Afl(Solved):
    """Heads that were solved on parts of the data give the very head that is solved on all of it.

    A client's ridge head is ``W_i (G_i + r I) = Y_iᵀ X_i`` with ``G_i = X_iᵀ X_i``, so ``(Σ W_i (G_i + r I)) (Σ G_i + t I)⁻¹`` is the head of all
    data under the ridge ``t``: however they were divided, in one round, without anybody's data.

    *Shapes:* matrices (classes, features); statistics ``name/gram`` (features, features).

    *Needs and cost:* statistics of each client's data, which come beside the tensors; one solve of features³; whole tensors, in float64.

    *Reduces to:* the mean by numbers of samples where all clients' inputs are alike.

    *Raises:* ``SettingError`` without statistics.

    *Differences from the paper:* clients' ridges are taken out in one step, not pair by pair; tensors without statistics are averaged.

    Example:
        >>> from modicum.merge._family import At
        >>> x, y = torch.randn(9, 2, dtype=torch.float64), torch.randn(9, 1, dtype=torch.float64)
        >>> head = lambda x, y: torch.linalg.solve(x.T @ x + torch.eye(2), x.T @ y).T
        >>> at = At("w", (1, 2), (1.0, 1.0), beside=({"gram": x[:4].T @ x[:4]}, {"gram": x[4:].T @ x[4:]}))
        >>> made = Afl().combine(x[:1], [head(x[:4], y[:4]), head(x[4:], y[4:])], [1.0, 1.0], at)
        >>> torch.allclose(made, torch.linalg.lstsq(x, y).solution.T)
        True

    """

    paper: ClassVar[Paper | None] = Paper(
        title="AFL: A Single-Round Analytic Approach for Federated Learning with Pre-trained Models",
        arxiv="2405.16240",
        year=2024,
        authors="Run He and Kai Tong and Di Fang and Han Sun and Ziqian Zeng and Haoran Li and Tianyi Chen and Huiping Zhuang",
    )

    ridge: float = param(1.0, "ridge that every client solved with", between=(0.0, 1e12))
    target: float = param(0.0, "ridge of the head that is made", between=(0.0, 1e12))

    @override
    def solved(
        self, others: Sequence[torch.Tensor], weights: Sequence[float], grams: Sequence[torch.Tensor], mean: torch.Tensor
    ) -> torch.Tensor:
        eye = torch.eye(len(grams[0]), dtype=torch.float64)
        weighed = [weight * gram for weight, gram in zip(weights, grams)]
        answers = [other.double() @ (gram + weight * self.ridge * eye) for other, gram, weight in zip(others, weighed, weights)]
        return solution(torch.stack(weighed).sum(0) + self.target * eye, torch.stack(answers).sum(0))
