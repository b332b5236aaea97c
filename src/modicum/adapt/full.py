"""Full fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from typing_extensions import override

from modicum.adapt._family import Adapter, weight_of
from modicum.core.parametrization import Start, State, Step
from modicum.forms import Dense

if TYPE_CHECKING:
    from modicum.forms import Form


@dataclass(frozen=True, kw_only=True)
class Full(Adapter):
    """The whole weight is trained, in float32: what all others are held against.

    What is written is the new weight in the dtype that the base is stored in; ``shift`` trains as much and writes the change.

    *Shapes:* weight (rows, columns); a vector is one row.

    *Needs and cost:* no statistics; rows · columns trained numbers.

    *Reduces to:* the base, where training begins.

    *Raises:* ``SettingError`` where there is no weight to begin from.

    *Differences from the paper:* there is none.

    Example:
        >>> str(Full())
        'full'

    """

    relative: ClassVar[bool] = False
    rate: ClassVar[float] = 1.3e-3

    @override
    def begin(self, start: Start) -> State:
        """The weight."""
        return State({"weight": weight_of(start)}, base=start.base)

    @override
    def weight(self, base: torch.Tensor | None, state: State, step: Step) -> torch.Tensor:
        """What is trained."""
        return state["weight"]

    @override
    def form(self, state: State) -> Form:
        """A weight as any other."""
        assert state.base is not None
        return Dense(state["weight"].to(state.base.dtype))
