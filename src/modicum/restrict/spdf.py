"""SPDF."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.parametrization import Revision, State, Step
from modicum.core.settings import param
from modicum.forms import Dense
from modicum.restrict._family import Shapes, Sparsity

if TYPE_CHECKING:
    from modicum.forms import Form


@dataclass(frozen=True, kw_only=True)
class Spdf(Sparsity):
    """Trained under a random mask first, and whole afterwards: the zeros are freed for the rest of training.

    *Shapes:* values (entries,) at places (entries,) of the matrix until the share ``until`` of training, then all of it.

    *Needs and cost:* no statistics; the operations of a sparse model while the mask stands. What is stored is dense.

    *Reduces to:* dense training with ``keep=1``.

    *Raises:* ``SettingError`` for a share below one weight per row.

    *Differences from the paper:* both parts are one training of one text; call it twice for a task of its own.

    Example:
        >>> Spdf(keep=0.25).density(Step(9, 10))
        1.0

    """

    paper: ClassVar[Paper | None] = Paper(
        title="SPDF: Sparse Pre-training and Dense Fine-tuning for Large Language Models",
        arxiv="2303.10464",
        year=2023,
        authors="Vithursan Thangarasa and Abhay Gupta and William Marshall and Tianda Li and Kevin Leong and Dennis DeCoste and Sean Lie and others",
    )

    layers: str = param("uniform", "how the share is divided over layers", choices=("uniform", "erk"))
    until: float = param(0.75, "share of training after which the weights are whole", between=(0.0, 1.0))

    @override
    def density(self, step: Step) -> float:
        """What is kept, then all."""
        return self.keep if step.number < self._last(step) else 1.0

    def _last(self, step: Step) -> int:
        return min(step.total, math.ceil(self.until * step.total))

    @override
    def revise(self, states: Mapping[str, State], gradients: Mapping[str, torch.Tensor], budget: int, step: Step) -> Revision | None:
        """The zeros become trained numbers; what was trained keeps its moments."""
        if step.number != self._last(step):
            return None
        revised, kept = {}, {}
        for unit, state in states.items():
            size, places = math.prod(state["shape"].tolist()), state["places"]
            values = state["values"].detach().new_zeros(size).index_copy(0, places, state["values"].detach())
            revised[unit] = state.having({"values": values}, {"places": torch.arange(size)})
            kept[unit] = {"values": torch.full((size,), -1).index_copy(0, places, torch.arange(len(places)))}
        return Revision(revised, kept)

    @override
    def form(self, state: State) -> Form:
        """Whole."""
        return Dense(self.weight(None, state, Step()).detach())

    @override
    def outlines(self, shapes: Shapes) -> dict[str, Form]:
        """Whole."""
        self.common(shapes, torch.Generator(), 0)
        return {unit: Dense(torch.zeros(shape)) for unit, shape in shapes.items()}
