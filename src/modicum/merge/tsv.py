"""TSV-Merge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.settings import param
from modicum.merge._family import At, Merge, mixed


@dataclass(frozen=True, kw_only=True)
class Tsv(Merge):
    """Each model's change of a matrix keeps its leading singular directions, made orthogonal to those of the others, and is added.

    Of n changes ``U_i S_i V_iᵀ`` each keeps the share ``keep / n`` of its directions; ``[U_1 … U_n]`` and ``[V_1 … V_n]`` are replaced by their
    nearest orthogonal matrices, so that tasks do not meet. Vectors are averaged.

    *Shapes:* matrices (rows, columns); a convolution is one of rows × all else.

    *Needs and cost:* no data; one decomposition for each matrix of each model and two of as many rows as there are kept directions; whole tensors.

    *Reduces to:* ``task_arithmetic`` of one model at keep 1, within rounding.

    *Raises:* ``SettingError`` for weights that are no shares.

    *Differences from the paper:* a model's weight multiplies its singular values, as a share of the mean weight.

    Example:
        >>> one = torch.tensor([[3.0, 0.0], [0.0, 0.0]])
        >>> Tsv().combine(torch.zeros(2, 2), [one, one.flip(0, 1)], [1.0, 1.0], At("w", (2, 2), (1.0, 1.0))).round().abs()
        tensor([[3., 0.],
                [0., 3.]])

    """

    paper: ClassVar[Paper | None] = Paper(
        title="Task Singular Vectors: Reducing Task Interference in Model Merging",
        arxiv="2412.00081",
        year=2024,
        authors="Antonio Andrea Gargiulo and Donato Crisostomi and Maria Sofia Bucarelli and Simone Scardapane and Fabrizio Silvestri and "
        "Emanuele Rodolà",
    )
    known_gaps: ClassVar[dict[str, str]] = {
        "one model": "a matrix is put together of its decomposition, which rounds",
        "equal models": "what all changed alike is one direction, and there is room for one of them",
    }
    pieces: ClassVar[bool] = False
    shares: ClassVar[bool] = True

    keep: float = param(1.0, "share of the directions that all models keep together", between=(0.0, 1.0))
    scale: float = param(1.0, "what the merged difference is multiplied by", between=(-1e6, 1e6))

    @override
    def combine(self, base: torch.Tensor, others: Sequence[torch.Tensor], weights: Sequence[float], at: At) -> torch.Tensor:
        count, total = len(others), sum(weights)
        if base.ndim < 2:
            return mixed((base, *others), [1 - self.scale, *(self.scale * weight / total for weight in weights)])
        lefts, values, rights = [], [], []
        for other, weight in zip(others, weights):
            left, value, right = torch.linalg.svd((other - base).reshape(base.shape[0], -1), full_matrices=False)
            rank = max(1, int(self.keep * len(value) / count))
            lefts.append(left[:, :rank])
            values.append(value[:rank] * (weight * count / total))
            rights.append(right[:rank])
        change = _orthogonal(torch.cat(lefts, 1)) * torch.cat(values) @ _orthogonal(torch.cat(rights))
        return base + self.scale * change.reshape(base.shape)


def _orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    return left @ right
