"""Low-rank training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.parametrization import Start, State, Step
from modicum.core.settings import param
from modicum.forms import LowRank as Factors
from modicum.restrict._family import Restriction

if TYPE_CHECKING:
    from modicum.forms import Form


@dataclass(frozen=True, kw_only=True)
class LowRank(Restriction):
    """A weight that is the product of two thin matrices from beginning to end.

    A weight that exists begins as its truncated decomposition, its singular values shared by both sides; from nothing both are drawn so that
    the product has the size of a layer's own weights.

    *Shapes:* left (rows, rank), right (rank, columns).

    *Needs and cost:* no statistics; rank · (rows + columns) trained numbers, and as many multiplications per token.

    *Reduces to:* a dense weight of full rank.

    *Raises:* nothing of its own.

    *Differences from the paper:* features of the original are matched by the loop's objective, where there is an original; weights are not perturbed.

    Example:
        >>> str(LowRank(rank=16))
        'low_rank rank=16'

    """

    draws: ClassVar[bool] = True
    paper: ClassVar[Paper | None] = Paper(
        title="PELA: Learning Parameter-Efficient Models with Low-Rank Approximation",
        arxiv="2310.10700",
        year=2023,
        authors="Yangyang Guo and Guangzhi Wang and Mohan Kankanhalli",
    )

    rank: int = param(16, "inner size of the two factors", between=(1, 65536), dial=True)

    @override
    def begin(self, start: Start) -> State:
        """The truncated decomposition, or random factors."""
        (rows, columns), rank = start.shape, min(self.rank, *start.shape)
        if start.weight is not None:
            u, s, v = torch.linalg.svd(start.weight.double(), full_matrices=False)
            root = s[:rank].sqrt()
            return State({"left": (u[:, :rank] * root).float(), "right": (root[:, None] * v[:rank]).float()})
        draw = lambda *shape: torch.randn(shape, generator=start.chance)
        return State({"left": draw(rows, rank) / math.sqrt(3 * rank), "right": draw(rank, columns) / math.sqrt(columns)})

    @override
    def weight(self, base: torch.Tensor | None, state: State, step: Step) -> torch.Tensor:
        """The product."""
        return state["left"] @ state["right"]

    @override
    def product(self, base: Form | None, state: State, x: torch.Tensor, step: Step) -> torch.Tensor | None:
        """One factor after the other."""
        return (x @ state["right"].to(x.dtype).T) @ state["left"].to(x.dtype).T

    @override
    def products(self, shape: tuple[int, int], step: Step) -> float:
        """Those of both factors."""
        rows, columns = shape
        return min(self.rank, rows, columns) * (rows + columns) / (rows * columns)

    @override
    def form(self, state: State) -> Form:
        """Two factors."""
        return Factors(state["left"], state["right"])
