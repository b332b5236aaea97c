"""GraSP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.parametrization import Revision, State, Step
from modicum.restrict._family import Scored

# How far the weights are moved along their gradient for a difference of gradients, as a share of their norm.
_FAR = 0.01


@dataclass(frozen=True, kw_only=True)
class Grasp(Scored):
    """Before training those entries go whose absence leaves the most of the gradient's norm.

    The score of an entry is ``w · (H g)`` with the gradient g and the Hessian H of the loss: removing one with a low score raises the norm of the
    gradient, to first order. ``H g`` is the difference of two gradients a little apart.

    *Shapes:* values (entries,) at places (entries,) of the matrix, row by row.

    *Needs and cost:* two passes over some batches with the whole weights' gradients; entries trained numbers.

    *Reduces to:* dense training with ``keep=1``.

    *Raises:* ``SettingError`` for a share below one weight per row, and where nothing was scored before training.

    *Differences from the paper:* the product with the Hessian is a difference instead of a second backward pass; no temperature.

    Example:
        >>> Grasp(keep=0.2).looks
        2

    """

    paper: ClassVar[Paper | None] = Paper(
        title="Picking Winning Tickets Before Training by Preserving Gradient Flow",
        arxiv="2002.07376",
        year=2020,
        authors="Chaoqi Wang and Guodong Zhang and Roger Grosse",
    )

    @property
    def looks(self) -> int:
        """The gradient, and that a little further along it."""
        return 2

    @override
    def weight(self, base: torch.Tensor | None, state: State, step: Step) -> torch.Tensor:
        """In the second look moved along the gradient."""
        made = super().weight(base, state, step)
        return made + state["gradient"] * state["distance"] if step.number == -1 and "gradient" in state.frozen else made

    @override
    def revise(self, states: Mapping[str, State], gradients: Mapping[str, torch.Tensor], budget: int, step: Step) -> Revision | None:
        """The first look's gradients are kept, the second's chosen by."""
        if step.number != -1 or not gradients:
            return super().revise(states, gradients, budget, step)
        norm = lambda parts: torch.stack([part.norm() for part in parts]).norm()
        distance = _FAR * norm([state["values"].detach() for state in states.values()]) / norm(list(gradients.values())).clamp_min(1e-30)
        return Revision({unit: states[unit].having(frozen={"gradient": g, "distance": distance}) for unit, g in gradients.items()})

    @override
    def scores(self, state: State, gradient: torch.Tensor) -> torch.Tensor:
        """What of the gradient's norm an entry holds up."""
        change = (gradient - state["gradient"]) / state["distance"].clamp_min(1e-30)
        return state["values"].detach() * change.reshape(-1)

    @override
    def chosen(self, state: State, places: torch.Tensor) -> State:
        """Without what the looks kept."""
        left = super().chosen(state, places)
        return State(left.trained, {name: left[name] for name in ("places", "shape")}, left.common, left.base)
