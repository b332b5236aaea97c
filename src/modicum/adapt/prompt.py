"""Prompt tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from modicum.adapt._prompts import SoftPrompt, embedded
from modicum.core.aside import Spot
from modicum.core.method import Paper
from modicum.core.parametrization import State
from modicum.core.settings import param


@dataclass(frozen=True, kw_only=True)
class Prompt(SoftPrompt):
    """Rows are trained that stand before a model's embedded inputs, as if they were tokens that no vocabulary has.

    They begin as embeddings of tokens drawn at random; what the model gives for them is cut off.

    *Shapes:* rows (tokens, width).

    *Needs and cost:* no statistics; tokens · width trained numbers, and as many tokens more in every forward.

    *Reduces to:* a fixed prompt of the tokens drawn, where training begins.

    *Raises:* ``ModelError`` for a model that does not take token ids and embedded inputs.

    *Differences from the paper:* none known.

    Example:
        >>> str(Prompt(tokens=10)), Prompt.mergeable
        ('prompt tokens=10', False)

    """

    paper: ClassVar[Paper | None] = Paper(
        title="The Power of Scale for Parameter-Efficient Prompt Tuning",
        arxiv="2104.08691",
        year=2021,
        authors="Brian Lester and Rami Al-Rfou and Noah Constant",
    )
    rate: ClassVar[float] = 3e-2

    tokens: int = param(20, "rows before the inputs", between=(1, 65536), dial=True)

    @override
    def begin(self, spot: Spot) -> State:
        """Embeddings of random tokens."""
        return State({"rows": embedded(spot, self.tokens)})

    @override
    def rows(self, state: State) -> torch.Tensor:
        """As they are trained."""
        return state["rows"]
