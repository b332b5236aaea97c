"""Stable sensitivity pruning."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.parametrization import Start, State
from modicum.core.settings import param
from modicum.restrict._family import Scored


@dataclass(frozen=True, kw_only=True)
class SbpSr(Scored):
    """Weights begin at the edge of chaos, those go that the loss feels least, and what stays is scaled up so that signals keep their size.

    Weights are drawn with variance ``gain² / columns``, the score is ``|w · ∂L/∂w|``, and each weight's entries are multiplied by what brings back
    the sum of their squares. On the edge (√2 for rectified units, 1 for tanh) gradients reach all of many layers, before pruning and after.

    *Shapes:* values (entries,) at places (entries,) of the matrix, row by row.

    *Needs and cost:* one pass over some batches with the whole weights' gradients; entries trained numbers.

    *Reduces to:* ``snip`` without the scaling, where ``gain=0`` leaves weights as the model was made with them.

    *Raises:* ``SettingError`` for a share below one weight per row, and where nothing was scored before training.

    *Differences from the paper:* the scaling is of the sum of squares of a whole weight, not of each unit's expectation.

    Example:
        >>> str(SbpSr(keep=0.2))
        'sbp_sr keep=0.2'

    """

    paper: ClassVar[Paper | None] = Paper(
        title="Robust Pruning at Initialization",
        arxiv="2002.08797",
        year=2020,
        authors="Soufiane Hayou and Jean-Francois Ton and Arnaud Doucet and Yee Whye Teh",
    )

    gain: float = param(2**0.5, "deviation of the weights times the root of the columns; 0 leaves them", between=(0.0, 100.0))
    rescaled: bool = param(True, "whether what stays is scaled up")

    @override
    def begin(self, start: Start) -> State:
        """All places, drawn at the gain."""
        state = super().begin(start)
        if not self.gain:
            return state
        drawn = torch.randn(start.shape, generator=start.chance) * (self.gain / math.sqrt(start.shape[1]))
        return state.having({"values": drawn.reshape(-1)})

    @override
    def scores(self, state: State, gradient: torch.Tensor) -> torch.Tensor:
        """How much the loss feels each entry."""
        return (state["values"].detach() * gradient.reshape(-1)).abs()

    @override
    def chosen(self, state: State, places: torch.Tensor) -> State:
        """Scaled to the sum of squares of before."""
        left = super().chosen(state, places)
        if not self.rescaled:
            return left
        size = state["values"].detach().norm() / left["values"].norm().clamp_min(1e-30)
        return left.having({"values": left["values"] * size})
