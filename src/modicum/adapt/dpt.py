"""DPT."""

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
class Dpt(SoftPrompt):
    """A prompt is trained as a product of two thin matrices, for trained prompts are of low rank.

    ``left @ right`` stands before the embedded inputs; it begins as the nearest such product of the embeddings of random tokens.

    *Shapes:* left (tokens, rank), right (rank, width); the rank is at most the smaller side.

    *Needs and cost:* no statistics; rank · (tokens + width) trained numbers.

    *Reduces to:* ``prompt`` at full rank.

    *Raises:* ``ModelError`` for a model that does not take token ids and embedded inputs.

    *Differences from the paper:* factors begin at a decomposition of embeddings; the paper draws them at random.

    Example:
        >>> str(Dpt(tokens=40, rank=4))
        'dpt tokens=40'

    """

    paper: ClassVar[Paper | None] = Paper(
        title="Decomposed Prompt Tuning via Low-Rank Reparameterization",
        arxiv="2310.10094",
        year=2023,
        authors="Yao Xiao and Lu Xu and Jiaxi Li and Wei Lu and Xiaoli Li",
    )
    rate: ClassVar[float] = 3e-2

    tokens: int = param(20, "rows before the inputs", between=(1, 65536), dial=True)
    rank: int = param(4, "inner size of the two factors", between=(1, 65536))

    @override
    def begin(self, spot: Spot) -> State:
        """The largest singular directions of random embeddings."""
        u, s, v = torch.linalg.svd(embedded(spot, self.tokens), full_matrices=False)
        root = s[: self.rank].sqrt()
        return State({"left": u[:, : self.rank] * root, "right": root[:, None] * v[: self.rank]})

    @override
    def rows(self, state: State) -> torch.Tensor:
        """The product."""
        return state["left"] @ state["right"]
