"""The adapt family: what is learnt stands beside a weight that stays as it is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from typing_extensions import override

from modicum.core.parametrization import Parametrization, Start, State, Step
from modicum.forms import LowRank, Sum

if TYPE_CHECKING:
    from modicum.forms import Form


@dataclass(frozen=True, kw_only=True)
class Adapter(Parametrization):
    """Changes a base; ``begin`` gives it back to the bit."""


@dataclass(frozen=True, kw_only=True)
class LowRankAdapter(Adapter):
    """``base + scale · left @ right``; files say where both factors begin, and ``scale`` what they are multiplied by."""

    def scale(self, rank: int) -> float:
        """What the product of the factors is multiplied by."""
        return 1.0

    def left(self, state: State) -> torch.Tensor:
        """The left factor (rows, rank) under its scale."""
        return state["left"] * self.scale(state["left"].shape[1])

    @override
    def weight(self, base: torch.Tensor | None, state: State, step: Step) -> torch.Tensor:
        assert base is not None
        return base + self.left(state) @ state["right"]

    @override
    def form(self, state: State) -> Form:
        assert state.base is not None
        return Sum((state.base, LowRank(self.left(state), state["right"])))

    @override
    def product(self, base: Form | None, state: State, x: torch.Tensor, step: Step) -> torch.Tensor | None:
        assert base is not None
        return base.product(x) + (x @ state["right"].to(x.dtype).T) @ self.left(state).to(x.dtype).T


def limited(rank: int, start: Start) -> int:
    """The rank, or the smaller side of the weight where that has fewer."""
    return min(rank, *start.shape)


def uniform(start: Start, rows: int, columns: int) -> torch.Tensor:
    """Numbers in ±1/√columns, as linear layers begin."""
    bound = 1 / math.sqrt(max(1, columns))
    return torch.empty(rows, columns).uniform_(-bound, bound, generator=start.chance)
