"""Shift."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from typing_extensions import override

from modicum.adapt._family import Adapter
from modicum.core.method import Paper
from modicum.core.parametrization import Start, State, Step
from modicum.forms import Dense, Sum

if TYPE_CHECKING:
    from modicum.forms import Form


@dataclass(frozen=True, kw_only=True)
class Shift(Adapter):
    """A trained number is added to every entry: full fine-tuning, BitFit on biases, norm tuning on norms.

    ``W + change``: the plan says of which parameters, as in ``{"*.bias": "shift"}``.

    *Shapes:* change (rows, columns); a vector is one row.

    *Needs and cost:* no statistics; rows · columns trained numbers.

    *Reduces to:* the base with the change at zero, where training begins.

    *Raises:* nothing of its own.

    *Differences from the paper:* what else is trained beside the biases, such as a new head, is the plan's to say.

    Example:
        >>> str(Shift())
        'shift'

    """

    paper: ClassVar[Paper | None] = Paper(
        title="BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models",
        arxiv="2106.10199",
        year=2021,
        authors="Elad Ben Zaken and Shauli Ravfogel and Yoav Goldberg",
    )
    rate: ClassVar[float] = 2e-3

    @override
    def begin(self, start: Start) -> State:
        """Zeros."""
        return State({"change": torch.zeros(start.shape)}, base=start.base)

    @override
    def weight(self, base: torch.Tensor | None, state: State, step: Step) -> torch.Tensor:
        """The base and the change."""
        assert base is not None
        return base + state["change"]

    @override
    def form(self, state: State) -> Form:
        """All entries of the change."""
        assert state.base is not None
        return Sum((state.base, Dense(state["change"])))
