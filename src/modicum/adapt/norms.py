"""Norms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from typing_extensions import override

from modicum.adapt._family import Adapter, weight_of
from modicum.core.method import Paper
from modicum.core.parametrization import Start, State, Step
from modicum.core.unit import Unit
from modicum.forms import Dense, Sum

if TYPE_CHECKING:
    from modicum.forms import Form


@dataclass(frozen=True, kw_only=True)
class Norms(Adapter):
    """Norms and biases are trained: what a model holds in vectors, a few thousandths of its numbers.

    ``v + size · change`` with ``size`` the root mean square of the vector, or one where it is zero: a learning rate that suits norms near one suits
    small biases too. One option for all means all that are vectors.

    *Shapes:* change (rows, columns); a vector is one row.

    *Needs and cost:* no statistics; as many trained numbers as the vectors have.

    *Reduces to:* ``shift`` on vectors of size one, and the base with the change at zero, where training begins.

    *Raises:* nothing of its own.

    *Differences from the paper:* the step of a vector is relative to its size; the head is not trained.

    Example:
        >>> str(Norms())
        'norms'

    """

    paper: ClassVar[Paper | None] = Paper(
        title="PERP: Rethinking the Prune-Retrain Paradigm in the Era of LLMs",
        arxiv="2312.15230",
        year=2023,
        authors="Max Zimmer and Megi Andoni and Christoph Spiegel and Sebastian Pokutta",
    )

    rate: ClassVar[float] = 5.5e-2

    @override
    def means(self, unit: Unit) -> bool:
        """Vectors."""
        return unit.kind == "parameter" and len(unit.stored_shape) == 1

    @override
    def begin(self, start: Start) -> State:
        """No change."""
        size = weight_of(start).square().mean().sqrt()
        return State({"change": torch.zeros(start.shape)}, {"size": torch.where(size > 0, size, 1.0)}, base=start.base)

    @override
    def weight(self, base: torch.Tensor | None, state: State, step: Step) -> torch.Tensor:
        """The base and its change."""
        assert base is not None
        return base + state["size"] * state["change"]

    @override
    def form(self, state: State) -> Form:
        """The change beside the base."""
        assert state.base is not None
        return Sum((state.base, Dense(state["size"] * state["change"])))
