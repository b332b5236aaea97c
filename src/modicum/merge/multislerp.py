"""Multi-SLERP."""

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
class Multislerp(Linear):
    """Any number of models interpolated on the sphere, in the tangent space at their mean direction.

    Directions ``u_i`` of the changes have the mean direction ``m``; ``v = Σ w_i (u_i - <u_i, m> m)``, and the result goes from ``m`` along
    ``v``: ``(cos |v| m + sin |v| v / |v|) · Σ w_i |W_i - W_0|``, added to the base.

    *Shapes:* tensors of one shape.

    *Needs and cost:* no data; every tensor is read twice, once for the products of all pairs, of which coefficients are made.

    *Reduces to:* the model, where there is one.

    *Raises:* ``SettingError`` for weights that are no shares.

    *Differences from the paper:* where directions cancel out the mean is linear, for any number of models; no constant is added to norms.

    Example:
        >>> [round(c, 4) for c in Multislerp().coefficients([1.0, 1.0], torch.eye(2, dtype=torch.float64))]
        [-0.4142, 0.7071, 0.7071]

    """

    paper: ClassVar[Paper | None] = Paper(
        title="Arcee's MergeKit: A Toolkit for Merging Large Language Models",
        arxiv="2403.13257",
        year=2024,
        authors="Charles Goddard and Shamane Siriwardhana and Malikeh Ehghaghi and Luke Meyers and Vlad Karpukhin and Brian Benedict and "
        "Mark McQuade and Jacob Solawetz",
    )
    products: ClassVar[str] = "differences"
    shares: ClassVar[bool] = True

    @override
    def coefficients(self, weights: Sequence[float], gram: torch.Tensor) -> Sequence[float]:
        share = torch.tensor(weights, dtype=torch.float64) / sum(weights)
        norms = gram.diagonal().clamp(min=0).sqrt()
        size = torch.where(norms > 0, norms, 1.0)
        cosines = gram / size / size[:, None]
        length = math.sqrt(max(0.0, float(share @ cosines @ share)))
        if len(weights) == 1 or length < 1e-8:
            found = share
        else:
            mean = share / length  # of unit directions, as all that follows
            dots = cosines @ mean
            tangent = share - float(share @ dots) * mean
            angle = math.sqrt(max(0.0, float(tangent @ cosines @ tangent)))
            turned = math.cos(angle) * mean + (math.sin(angle) / angle if angle else 1.0) * tangent
            found = turned / size * float(share @ norms)
        return (1.0 - float(found.sum()), *map(float, found))
