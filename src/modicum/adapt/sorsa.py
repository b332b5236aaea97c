"""SORSA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from modicum.adapt._family import PrincipalAdapter, limited, weight_of
from modicum.core.method import Paper
from modicum.core.parametrization import Start, State, Step
from modicum.core.settings import param
from modicum.numerics.svd import principal


@dataclass(frozen=True, kw_only=True)
class Sorsa(PrincipalAdapter):
    """Principal singular values and vectors of a weight are trained apart, and vectors are kept near orthonormal.

    ``W + (U diag(s) V - U₀ diag(s₀) V₀)``; ``strength · (|UᵀU - I|² + |VVᵀ - I|²)`` is added to the loss, over all weights.

    *Shapes:* u (rows, rank), s (rank,), v (rank, columns); the rank is at most the smaller side.

    *Needs and cost:* no statistics; one randomized decomposition per weight; rank · (rows + columns + 1) trained numbers.

    *Reduces to:* the base, where training begins.

    *Raises:* nothing of its own.

    *Differences from the paper:* as with PiSSA what has moved is added to the base; the residual is not stored in its place.

    Example:
        >>> str(Sorsa(rank=16))
        'sorsa rank=16'

    """

    paper: ClassVar[Paper | None] = Paper(
        title="SORSA: Singular Values and Orthonormal Regularized Singular Vectors Adaptation of Large Language Models",
        arxiv="2409.00055",
        year=2024,
        authors="Yang Cao",
    )
    rate: ClassVar[float] = 4e-3

    rank: int = param(8, "how many singular directions are trained", between=(1, 65536), dial=True)
    strength: float = param(4e-4, "what the distance from orthonormal vectors is multiplied by in the loss", between=(0.0, 1e6))

    @override
    def begin(self, start: Start) -> State:
        """The principal parts, trained, and their product's factors as they were."""
        u, s, v = principal(weight_of(start), limited(self.rank, start), start.chance)
        return State({"u": u, "s": s, "v": v}, {"left before": u * s, "right before": v}, base=start.base)

    @override
    def factors(self, state: State) -> tuple[torch.Tensor, torch.Tensor]:
        """Left vectors times values, right vectors."""
        return state["u"] * state["s"], state["v"]

    @override
    def penalty(self, states: Mapping[str, State], step: Step) -> torch.Tensor | None:
        """How far vectors are from orthonormal."""
        off = lambda gram: (gram - torch.eye(len(gram), device=gram.device)).square().sum()
        parts = [off(state["u"].T @ state["u"]) + off(state["v"] @ state["v"].T) for state in states.values()]
        return self.strength * torch.stack(parts).sum() if self.strength and parts else None
