"""LoRA-GA."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.utils.weak import WeakTensorKeyDictionary
from typing_extensions import override

from modicum.adapt._family import StrongAdapter, limited, uniform
from modicum.core.method import Paper
from modicum.core.parametrization import Start, State
from modicum.numerics.svd import principal

# Directions of gradients that are still there: whoever tries many ranks, the largest first, decomposes once.
_KNOWN = WeakTensorKeyDictionary()


@dataclass(frozen=True, kw_only=True)
class LoraGa(StrongAdapter):
    """LoRA whose right factor begins along the directions in which the loss falls fastest, where a gradient was taken before.

    ``W + alpha / rank · left @ right``: right begins as the largest right singular vectors of the gradient and left with zeros.

    *Shapes:* left (rows, rank), right (rank, columns); the rank is at most the smaller side.

    *Needs and cost:* one gradient of the weight, which ``adapt`` takes; rank · (rows + columns) trained numbers.

    *Reduces to:* ``lora`` in a loop of one's own that takes no gradient before.

    *Raises:* nothing of its own.

    *Differences from the paper:* left begins at zero, so that training begins at the base to the bit; vectors have the length that LoRA's rows have.

    Example:
        >>> str(LoraGa(rank=4))
        'lora_ga rank=4'

    """

    paper: ClassVar[Paper | None] = Paper(
        title="LoRA-GA: Low-Rank Adaptation with Gradient Approximation",
        arxiv="2407.05000",
        year=2024,
        authors="Shaowen Wang and Linxi Yu and Jian Li",
    )
    rate: ClassVar[float] = 5e-3
    asks_gradient: ClassVar[bool] = True

    @override
    def begin(self, start: Start) -> State:
        """Right along the gradient, zero left."""
        rank = limited(self.rank, start)
        right = uniform(start, rank, start.shape[1])
        if start.gradient is not None and bool(start.gradient.any()):
            right = _directions(start.gradient, rank, start.chance) / math.sqrt(3)
        return State({"left": torch.zeros(start.shape[0], rank), "right": right.contiguous()}, base=start.base)


def _directions(gradient: torch.Tensor, rank: int, chance: torch.Generator) -> torch.Tensor:
    """The largest right singular vectors (rank, columns)."""
    if len(_KNOWN.get(gradient, ())) < rank:
        _KNOWN[gradient] = principal(gradient.float().contiguous(), rank, chance)[2]
    return _KNOWN[gradient][:rank]
