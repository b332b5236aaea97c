"""SLTrain."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.parametrization import Start, State, Step
from modicum.core.settings import param
from modicum.forms import LowRank, Sparse, Sum
from modicum.forms.leaves import scattered
from modicum.restrict._family import Restriction

if TYPE_CHECKING:
    from modicum.forms import Form


@dataclass(frozen=True, kw_only=True)
class Sltrain(Restriction):
    """A low-rank product and sparse entries at places drawn once, trained together from the start.

    ``alpha / rank · left @ right + S``: places are drawn from a seed, which is all that a file holds of them.

    *Shapes:* left (rows, rank), right (rank, columns), entries (keep · rows · columns,).

    *Needs and cost:* no statistics; rank · (rows + columns) + entries trained numbers. The weight is made anew in the backward pass, so that
    neither it nor its gradient is kept.

    *Reduces to:* a low-rank layer with ``keep=0``.

    *Raises:* nothing of its own.

    *Differences from the paper:* a weight that exists already begins as its truncated decomposition and what that leaves at the places.

    Example:
        >>> str(Sltrain(rank=16))
        'sltrain rank=16 keep=0.03'

    """

    paper: ClassVar[Paper | None] = Paper(
        title="SLTrain: a sparse plus low-rank approach for parameter and memory efficient pretraining",
        arxiv="2406.02214",
        year=2024,
        authors="Andi Han and Jiaxiang Li and Wei Huang and Mingyi Hong and Akiko Takeda and Pratik Jawanpuria and Bamdev Mishra",
    )

    draws: ClassVar[bool] = True

    rank: int = param(8, "inner size of the low-rank part", between=(1, 65536), dial=True)
    keep: float = param(0.03, "share of entries that the sparse part has", between=(0.0, 1.0), dial=True)
    alpha: float = param(16.0, "strength: the product is multiplied by alpha / rank", between=(1e-6, 1e6))

    @override
    def begin(self, start: Start) -> State:
        """Random right and entries, zero left; of a weight its decomposition and what that leaves."""
        (rows, columns), rank = start.shape, min(self.rank, *start.shape)
        places = scattered(start.seed, round(self.keep * rows * columns), rows * columns)
        bound = 1 / math.sqrt(columns)
        draw = lambda *shape: torch.empty(shape).uniform_(-bound, bound, generator=start.chance)
        left, right, entries = torch.zeros(rows, rank), draw(rank, columns) * math.sqrt(3), draw(len(places))
        if start.weight is not None:
            u, s, v = torch.linalg.svd(start.weight.double(), full_matrices=False)
            root = s[:rank].sqrt()
            left, right = (u[:, :rank] * root / self._scale).float(), (root[:, None] * v[:rank]).float()
            entries = (start.weight.float() - self._scale * left @ right).reshape(-1)[places]
        return State({"left": left, "right": right, "entries": entries}, {"places": places, "seed": torch.tensor(start.seed)})

    @property
    def _scale(self) -> float:
        return self.alpha / self.rank

    @override
    def weight(self, base: torch.Tensor | None, state: State, step: Step) -> torch.Tensor:
        """The product and the entries."""
        low = (state["left"] * self._scale) @ state["right"]
        sparse = low.new_zeros(low.numel()).index_copy(0, state["places"], state["entries"])
        return low + sparse.reshape(low.shape)

    @override
    def product(self, base: Form | None, state: State, x: torch.Tensor, step: Step) -> torch.Tensor | None:
        """The weight made for this product alone."""
        return _Made.apply(x, state["left"] * self._scale, state["right"], state["entries"], state["places"])

    @override
    def form(self, state: State) -> Form:
        """Two factors, and entries under a seed."""
        left = state["left"] * self._scale
        sparse = Sparse(state["entries"], (len(left), state["right"].shape[1]), seed=int(state["seed"]))
        return Sum((LowRank(left, state["right"]), sparse))


class _Made(torch.autograd.Function):
    """``x @ (left @ right + S).T`` that keeps the parts and not the weight."""

    @staticmethod
    def _weight(left: torch.Tensor, right: torch.Tensor, entries: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        weight = left @ right
        return weight.view(-1).index_add_(0, places, entries).view_as(weight)

    @staticmethod
    def forward(ctx, x, left, right, entries, places):
        ctx.save_for_backward(x, left, right, entries, places)
        return x @ _Made._weight(left, right, entries, places).to(x.dtype).T

    @staticmethod
    def backward(ctx, gradient):
        x, left, right, entries, places = ctx.saved_tensors
        flat, taken = gradient.reshape(-1, gradient.shape[-1]), x.reshape(-1, x.shape[-1])
        whole = (flat.T @ taken).float()
        to_inputs = gradient @ _Made._weight(left, right, entries, places).to(gradient.dtype) if ctx.needs_input_grad[0] else None
        return to_inputs, whole @ right.T, left.T @ whole, whole.view(-1)[places], None
