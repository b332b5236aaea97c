"""LoRA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from modicum.adapt._family import StrongAdapter, limited, uniform
from modicum.core.method import Paper
from modicum.core.parametrization import Start, State


@dataclass(frozen=True, kw_only=True)
class Lora(StrongAdapter):
    """A product of two thin matrices is added to a weight, and they alone are trained.

    ``W + alpha / rank · left @ right``: right begins with random numbers and left with zeros, so that training begins at the base.

    *Shapes:* left (rows, rank), right (rank, columns); the rank is at most the smaller side.

    *Needs and cost:* no statistics; rank · (rows + columns) trained numbers, and as many multiplications per token.

    *Reduces to:* the base at any rank with left at zero.

    *Raises:* nothing of its own.

    *Differences from the paper:* dropout on the inputs is the loop's business.

    Example:
        >>> Lora(rank=4).scale(4)
        4.0

    """

    paper: ClassVar[Paper | None] = Paper(
        title="LoRA: Low-Rank Adaptation of Large Language Models",
        arxiv="2106.09685",
        year=2021,
        authors="Edward J. Hu and Yelong Shen and Phillip Wallis and Zeyuan Allen-Zhu and Yuanzhi Li and Shean Wang and Lu Wang and Weizhu Chen",
    )
    rate: ClassVar[float] = 5e-3

    @override
    def begin(self, start: Start) -> State:
        """Random right, zero left."""
        rank = limited(self.rank, start)
        return State({"left": torch.zeros(start.shape[0], rank), "right": uniform(start, rank, start.shape[1])}, base=start.base)
