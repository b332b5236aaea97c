"""RsLoRA."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from modicum.adapt._family import LowRankAdapter, limited, uniform
from modicum.core.method import Paper
from modicum.core.parametrization import Start, State
from modicum.core.settings import param


@dataclass(frozen=True, kw_only=True)
class Rslora(LowRankAdapter):
    """LoRA whose product is divided by the root of the rank, so that steps stay as large at high ranks.

    ``W + alpha / √rank · left @ right``: under LoRA's own ``alpha / rank`` what one update changes falls with the rank.

    *Shapes:* left (rows, rank), right (rank, columns); the rank is at most the smaller side.

    *Needs and cost:* no statistics; rank · (rows + columns) trained numbers, and as many multiplications per token.

    *Reduces to:* ``lora`` of the same alpha at rank 1.

    *Raises:* nothing of its own.

    *Differences from the paper:* none known.

    Example:
        >>> Rslora(rank=4, alpha=16.0).scale(4)
        8.0

    """

    paper: ClassVar[Paper | None] = Paper(
        title="A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA",
        arxiv="2312.03732",
        year=2023,
        authors="Damjan Kalajdzievski",
    )
    rate: ClassVar[float] = 5e-3

    rank: int = param(8, "inner size of the two factors", between=(1, 65536), dial=True)
    alpha: float = param(16.0, "strength: the product is multiplied by alpha / √rank", between=(0.0, 1e6))

    @override
    def begin(self, start: Start) -> State:
        """Random right, zero left."""
        rank = limited(self.rank, start)
        return State({"left": torch.zeros(start.shape[0], rank), "right": uniform(start, rank, start.shape[1])}, base=start.base)

    @override
    def scale(self, rank: int) -> float:
        """Alpha over the root of the rank that was asked for."""
        return self.alpha / math.sqrt(self.rank)
