"""Dense training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from typing_extensions import override

from modicum.core.parametrization import Start, State, Step
from modicum.forms import Dense as Whole
from modicum.restrict._family import Restriction, beginning

if TYPE_CHECKING:
    from modicum.forms import Form


@dataclass(frozen=True, kw_only=True)
class Dense(Restriction):
    """All of a weight is trained and stored: what every other method is held against, and what stands beside restricted weights.

    *Shapes:* weight (rows, columns), trained.

    *Needs and cost:* no statistics; rows · columns trained numbers.

    *Reduces to:* plain training, to the bit.

    *Raises:* nothing of its own.

    *Differences from the paper:* there is none.

    Example:
        >>> str(Dense())
        'dense'

    """

    @override
    def begin(self, start: Start) -> State:
        """The weight."""
        return State({"weight": beginning(start)}, base=start.base)

    @override
    def weight(self, base: torch.Tensor | None, state: State, step: Step) -> torch.Tensor:
        """Itself."""
        return state["weight"]

    @override
    def form(self, state: State) -> Form:
        """Whole."""
        return Whole(state["weight"].detach().clone())
