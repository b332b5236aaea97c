"""Model stock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from modicum.core.method import Paper
from modicum.merge._linear import Linear


@dataclass(frozen=True, kw_only=True)
class ModelStock(Linear):
    """The mean of a few fine-tuned models, drawn to the base by as much as they point apart.

    ``t · mean + (1 - t) W_0`` with ``t = k cos θ / (1 + (k - 1) cos θ)`` for k models, where θ is the angle between two changes: where models
    scatter about a centre, this is the point that is nearest to it.

    *Shapes:* tensors of one shape.

    *Needs and cost:* no data; every tensor is read twice, once for the products of all pairs.

    *Reduces to:* ``average`` where all changes point the same way, and for one model.

    *Raises:* ``SettingError`` for weights that are no shares.

    *Differences from the paper:* the cosine is the mean over all pairs, and of no less than nothing: the base is never left the other way.

    Example:
        >>> [round(c, 4) for c in ModelStock().coefficients([1.0, 1.0], torch.tensor([[1.0, 0.5], [0.5, 1.0]]))]
        [0.3333, 0.3333, 0.3333]

    """

    paper: ClassVar[Paper | None] = Paper(
        title="Model Stock: All we need is just a few fine-tuned models",
        arxiv="2403.19522",
        year=2024,
        authors="Dong-Hwan Jang and Sangdoo Yun and Dongyoon Han",
    )
    products: ClassVar[str] = "differences"
    shares: ClassVar[bool] = True

    @override
    def coefficients(self, weights: Sequence[float], gram: torch.Tensor) -> Sequence[float]:
        count, total = len(weights), sum(weights)
        norms = gram.diagonal().clamp(min=0).sqrt()
        pairs = torch.triu_indices(count, count, 1)
        sizes = norms[pairs[0]] * norms[pairs[1]]
        met = sizes > 0
        products = gram[pairs[0], pairs[1]]
        cosine = float((products[met] / sizes[met]).mean().clamp(0, 1)) if bool(met.any()) else 1.0
        share = count * cosine / (1 + (count - 1) * cosine) if count > 1 else 1.0
        return (1.0 - share, *(share * weight / total for weight in weights))
