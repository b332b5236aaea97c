"""Spherical interpolation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from modicum.core.method import Paper
from modicum.merge._linear import Linear


@dataclass(frozen=True, kw_only=True)
class Slerp(Linear):
    """Two models interpolated along the arc between them, tensor by tensor.

    ``sin((1 - t) θ) / sin θ · A + sin(t θ) / sin θ · B`` with θ the angle between A and B as vectors. Of one model A is the base and t its
    weight; of two, A and B are the models and t is the share of the second one's weight. Tensors that point the same or the opposite way are
    interpolated on the line.

    *Shapes:* tensors of one shape.

    *Needs and cost:* no data; every tensor is read twice, once for the angle.

    *Reduces to:* linear interpolation where the angle is nothing.

    *Raises:* ``SettingError`` for more than two models.

    *Differences from the paper:* vectors of any length are interpolated, so lengths are too.

    Example:
        >>> [round(c, 4) for c in Slerp().coefficients([0.5], torch.eye(2, dtype=torch.float64))]
        [0.7071, 0.7071]

    """

    paper: ClassVar[Paper | None] = Paper(title="Animating Rotation with Quaternion Curves", arxiv="", year=1985, authors="Ken Shoemake")
    products: ClassVar[str] = "tensors"
    most: ClassVar[int] = 2
    weight: ClassVar[float] = 0.5

    @override
    def coefficients(self, weights: Sequence[float], gram: torch.Tensor) -> Sequence[float]:
        first = 0 if len(weights) == 1 else 1
        share = weights[0] if len(weights) == 1 else weights[1] / (weights[0] + weights[1] or 1.0)
        one, other = (math.sqrt(float(gram[place, place])) for place in (first, first + 1))
        cosine = float(gram[first, first + 1]) / (one * other) if one and other else 1.0
        if abs(cosine) > 0.9995:
            found = (1.0 - share, share)
        else:
            angle = math.acos(cosine)
            found = (math.sin((1.0 - share) * angle) / math.sin(angle), math.sin(share * angle) / math.sin(angle))
        return found if len(weights) == 1 else (0.0, *found)
