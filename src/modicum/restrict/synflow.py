"""SynFlow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.parametrization import Revision, State, Step
from modicum.core.settings import param
from modicum.restrict._family import Scored, highest


@dataclass(frozen=True, kw_only=True)
class Synflow(Scored):
    """Before training, round by round, those entries go through which the least flows when all weights are positive and all inputs one.

    The score of an entry is ``|w · ∂R/∂w|`` with R the sum of the outputs of ones under the weights' magnitudes; after round k of ``rounds`` the best
    ``keep^(k / rounds)`` are left, so that no layer is lost whole.

    *Shapes:* values (entries,) at places (entries,) of the matrix, row by row.

    *Needs and cost:* ``rounds`` passes over one batch of ones, no data; entries trained numbers.

    *Reduces to:* dense training with ``keep=1``.

    *Raises:* ``SettingError`` for a share below one weight per row, and where nothing was scored before training.

    *Differences from the paper:* inputs that are no floats stay as they are, and biases and norms too.

    Example:
        >>> Synflow(keep=0.2, rounds=20).looks
        20

    """

    paper: ClassVar[Paper | None] = Paper(
        title="Pruning neural networks without any data by iteratively conserving synaptic flow",
        arxiv="2006.05467",
        year=2020,
        authors="Hidenori Tanaka and Daniel Kunin and Daniel L. K. Yamins and Surya Ganguli",
    )
    flows: ClassVar[bool] = True

    rounds: int = param(30, "rounds of pruning before training", between=(1, 1000))

    @property
    def looks(self) -> int:
        """One to a round."""
        return self.rounds

    @override
    def weight(self, base: torch.Tensor | None, state: State, step: Step) -> torch.Tensor:
        """In the rounds the magnitudes."""
        made = super().weight(base, state, step)
        return made.abs() if step.number < 0 else made

    @override
    def scores(self, state: State, gradient: torch.Tensor) -> torch.Tensor:
        """What flows through each entry that is still there."""
        return (state["values"].detach() * gradient.reshape(-1)[state["places"]]).abs()

    @override
    def revise(self, states: Mapping[str, State], gradients: Mapping[str, torch.Tensor], budget: int, step: Step) -> Revision | None:
        """The entries of this round."""
        if step.number > 0 or not gradients:
            return super().revise(states, gradients, budget, step)
        share = (step.number + self.rounds) / self.rounds
        scores = {unit: self.scores(states[unit], gradients[unit]) for unit in gradients}
        ends = {unit: self.entries(states[unit], unit) for unit in scores}
        sizes = {unit: math.prod(states[unit]["shape"].tolist()) for unit in scores}
        counts = {unit: max(ends[unit], round(sizes[unit] * (ends[unit] / sizes[unit]) ** share)) for unit in scores} if share < 1 else ends
        found = highest(scores, counts, together=self.layers == "global")
        return Revision({unit: self.chosen(states[unit], states[unit]["places"][found[unit]]) for unit in scores})
