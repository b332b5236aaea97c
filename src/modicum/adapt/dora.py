"""DoRA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from typing_extensions import override

from modicum.adapt._family import Adapter, limited, uniform, weight_of
from modicum.core.method import Paper
from modicum.core.parametrization import Start, State, Step
from modicum.core.settings import param
from modicum.forms import LowRank, Normalized, Sum

if TYPE_CHECKING:
    from modicum.forms import Form


@dataclass(frozen=True, kw_only=True)
class Dora(Adapter):
    """The direction of each row of a weight is changed by a product of thin matrices, and its length is trained apart.

    ``lengths · V / |V|`` with ``V = W + alpha / rank · left @ right`` row by row; lengths begin as those of W. The norm in the denominator passes
    no gradient on.

    *Shapes:* left (rows, rank), right (rank, columns), lengths (rows,).

    *Needs and cost:* no statistics; rank · (rows + columns) + rows trained numbers; the weight is made, for its norms.

    *Reduces to:* the base with left at zero, where training begins.

    *Raises:* nothing of its own.

    *Differences from the paper:* none known; dropout on the inputs is the loop's business.

    Example:
        >>> str(Dora(rank=4))
        'dora rank=4'

    """

    paper: ClassVar[Paper | None] = Paper(
        title="DoRA: Weight-Decomposed Low-Rank Adaptation",
        arxiv="2402.09353",
        year=2024,
        authors="Shih-Yang Liu and Chien-Yi Wang and Hongxu Yin and Pavlo Molchanov and Yu-Chiang Frank Wang and Kwang-Ting Cheng and Min-Hung Chen",
    )
    rate: ClassVar[float] = 1e-2

    rank: int = param(8, "inner size of the two factors", between=(1, 65536), dial=True)
    alpha: float = param(16.0, "strength: the product is multiplied by alpha / rank", between=(0.0, 1e6))

    @override
    def begin(self, start: Start) -> State:
        """Random right, zero left, the rows' lengths."""
        rank, rows = limited(self.rank, start), start.shape[0]
        trained = {"left": torch.zeros(rows, rank), "right": uniform(start, rank, start.shape[1]), "lengths": weight_of(start).norm(dim=1)}
        return State(trained, base=start.base)

    def _left(self, state: State) -> torch.Tensor:
        return state["left"] * (self.alpha / self.rank)

    @override
    def weight(self, base: torch.Tensor | None, state: State, step: Step) -> torch.Tensor:
        """Rows of the changed weight at their own lengths."""
        assert base is not None
        value = (base + self._left(state) @ state["right"]).contiguous()
        norm = value.detach().norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
        return value * (state["lengths"] / norm)[:, None]

    @override
    def form(self, state: State) -> Form:
        """Two factors beside the base, under lengths."""
        assert state.base is not None
        return Normalized(Sum((state.base, LowRank(self._left(state), state["right"]))), state["lengths"])
