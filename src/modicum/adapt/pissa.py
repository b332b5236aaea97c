"""PiSSA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from modicum.adapt._family import PrincipalAdapter, limited, weight_of
from modicum.core.method import Paper
from modicum.core.parametrization import Start, State
from modicum.core.settings import param
from modicum.numerics.svd import principal


@dataclass(frozen=True, kw_only=True)
class Pissa(PrincipalAdapter):
    """The principal singular directions of a weight are trained, the rest of it stays.

    ``W + (left @ right - left₀ @ right₀)`` with ``left₀ = U √S`` and ``right₀ = √S Vᵀ`` of the largest singular values.

    *Shapes:* left (rows, rank), right (rank, columns); the rank is at most the smaller side.

    *Needs and cost:* no statistics; one randomized decomposition per weight; rank · (rows + columns) trained numbers. A file holds both pairs
    of factors, which are one LoRA of twice the rank.

    *Reduces to:* the base, where training begins.

    *Raises:* nothing of its own.

    *Differences from the paper:* the residual is not stored in the weight's place: it would have to be rounded, and the base would come
    back inexactly. What has moved is added to the base instead.

    Example:
        >>> str(Pissa(rank=16))
        'pissa rank=16'

    """

    paper: ClassVar[Paper | None] = Paper(
        title="PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language Models",
        arxiv="2404.02948",
        year=2024,
        authors="Fanxu Meng and Zhaohui Wang and Muhan Zhang",
    )
    rate: ClassVar[float] = 5e-3

    rank: int = param(8, "how many singular directions are trained", between=(1, 65536), dial=True)

    @override
    def begin(self, start: Start) -> State:
        """The principal factors, trained, and as they were."""
        u, s, v = principal(weight_of(start), limited(self.rank, start), start.chance)
        left, right = u * s.sqrt(), s.sqrt()[:, None] * v
        return State({"left": left, "right": right}, {"left before": left, "right before": right}, base=start.base)
