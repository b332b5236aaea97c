"""The Karcher mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.settings import param
from modicum.merge._linear import Linear


@dataclass(frozen=True, kw_only=True)
class Karcher(Linear):
    """The mean direction of the models on the sphere, at their mean length.

    The point whose tangent vectors to all models, ``θ_i / sin θ_i (u_i - cos θ_i m)``, cancel out by the weights, found by going along their
    mean until it is nothing; times ``Σ w_i |W_i| / Σ w_i``.

    *Shapes:* tensors of one shape.

    *Needs and cost:* no data; every tensor is read twice, once for the products of all pairs: the search is in as many numbers as there are models.

    *Reduces to:* ``slerp`` of two models with equal lengths.

    *Raises:* ``SettingError`` for weights that are no shares.

    *Differences from the paper:* weights are means of tensors with lengths of their own, which are averaged apart.

    Example:
        >>> [round(c, 4) for c in Karcher().coefficients([1.0, 1.0], torch.eye(3, dtype=torch.float64))]
        [0.0, 0.7071, 0.7071]

    """

    paper: ClassVar[Paper | None] = Paper(
        title="Spherical averages and applications to spherical splines and interpolation",
        arxiv="",
        year=2001,
        authors="Samuel R. Buss and Jay P. Fillmore",
    )
    products: ClassVar[str] = "tensors"
    shares: ClassVar[bool] = True
    reads_base: ClassVar[bool] = False

    steps: int = param(100, "the most steps of the search", between=(1, 10**6))

    @override
    def coefficients(self, weights: Sequence[float], gram: torch.Tensor) -> Sequence[float]:
        gram = gram[1:, 1:]
        share = torch.tensor(weights, dtype=torch.float64) / sum(weights)
        norms = gram.diagonal().clamp(min=0).sqrt()
        size = torch.where(norms > 0, norms, 1.0)
        cosines = gram / size / size[:, None]
        length = lambda point: math.sqrt(max(0.0, float(point @ cosines @ point)))
        if len(weights) == 1 or length(share) < 1e-8:
            return (0.0, *map(float, share))
        mean = share / length(share)
        for _ in range(self.steps):
            dots = (cosines @ mean).clamp(-1, 1)
            angles = dots.arccos()
            pulls = share * torch.where(angles > 1e-7, angles / angles.sin(), 1.0)
            tangent = pulls - float(pulls @ dots) * mean
            if (angle := length(tangent)) < 1e-12:
                break
            mean = math.cos(angle) * mean + math.sin(angle) / angle * tangent
            mean = mean / length(mean)
        return (0.0, *map(float, mean / size * float(share @ norms)))
