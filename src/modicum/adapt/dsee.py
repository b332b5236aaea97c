"""DSEE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from typing_extensions import override

from modicum.adapt._family import Adapter, counted, limited, scatter, uniform, weight_of
from modicum.core.method import Paper
from modicum.core.parametrization import Start, State, Step
from modicum.core.settings import param
from modicum.forms import LowRank, Sparse, Sum
from modicum.numerics.svd import principal

if TYPE_CHECKING:
    from modicum.forms import Form


@dataclass(frozen=True, kw_only=True)
class Dsee(Adapter):
    """A product of thin matrices and a few entries are added to a weight; the entries lie where its own decomposition leaves most.

    ``W + (left @ right + S)``: the places of S are those of the largest entries of W less its principal part of the same rank.

    *Shapes:* left (rows, rank), right (rank, columns), entries (count,), count = keep · rows · columns.

    *Needs and cost:* no statistics; one randomized decomposition per weight; rank · (rows + columns) + count trained numbers.

    *Reduces to:* ``lora`` with alpha at the rank, but for one entry, at the smallest ``keep``.

    *Raises:* nothing of its own.

    *Differences from the paper:* pruning the weight beneath is a step before this one, as in ``magnitude keep=0.5 | dsee``.

    Example:
        >>> str(Dsee(rank=4))
        'dsee rank=4'

    """

    paper: ClassVar[Paper | None] = Paper(
        title="DSEE: Dually Sparsity-embedded Efficient Tuning of Pre-trained Language Models",
        arxiv="2111.00160",
        year=2021,
        authors="Xuxi Chen and Tianlong Chen and Weizhu Chen and Ahmed Hassan Awadallah and Zhangyang Wang and Yu Cheng",
    )
    rate: ClassVar[float] = 1e-2

    rank: int = param(8, "inner size of the two factors", between=(1, 65536), dial=True)
    keep: float = param(0.001, "share of entries that are trained beside the product", between=(1e-9, 1.0))

    @override
    def begin(self, start: Start) -> State:
        """Random right, zero left, zeros at the places of the residual's largest entries."""
        weight, rank, count = weight_of(start), limited(self.rank, start), counted(self.keep, start)
        u, s, v = principal(weight, rank, start.chance)
        rest = (weight - u * s @ v).reshape(-1).abs()
        places = rest.argsort(descending=True, stable=True)[:count].sort().values
        trained = {"left": torch.zeros(start.shape[0], rank), "right": uniform(start, rank, start.shape[1]), "entries": torch.zeros(count)}
        return State(trained, {"places": places}, base=start.base)

    @override
    def weight(self, base: torch.Tensor | None, state: State, step: Step) -> torch.Tensor:
        """The base, the product and the entries."""
        assert base is not None
        return base + (state["left"] @ state["right"] + scatter(state["entries"], state["places"], (base.shape[0], base.shape[1])))

    @override
    def form(self, state: State) -> Form:
        """Two factors and sparse entries beside the base."""
        assert state.base is not None
        sparse = Sparse(state["entries"], state.base.shape, state["places"].to(torch.int32))
        return Sum((state.base, Sum((LowRank(state["left"], state["right"]), sparse))))
