"""What trains when: a step of an option that says, update by update, which of the units before it move."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from modicum.core.method import Trainable
from modicum.core.parametrization import Step


@dataclass(frozen=True, kw_only=True)
class Schedule(Trainable):
    """Chooses the units that train in the next update; it stands behind what they are made of, as in ``full | lisa layers=2``.

    A file writes ``active``, a pure function of where training stands, so that a training that goes on chooses as it did. Of units that rest neither
    gradients nor an optimizer's moments are kept: whoever wakes begins with none.
    """

    def active(self, units: Mapping[str, str], step: Step, seed: int) -> frozenset[str]:
        """Names of the units that train in the update after ``step``.

        ``units`` says of each the block that it lies in, "" outside of all, in the model's order; ``seed`` is the training's.
        """
        raise NotImplementedError
