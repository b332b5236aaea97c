"""Lottery tickets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.parametrization import Revision, Start, State, Step
from modicum.core.settings import param
from modicum.restrict._family import Sparsity, beginning, highest, kept, sparse


@dataclass(frozen=True, kw_only=True)
class Tickets(Sparsity):
    """Trained, pruned by magnitude and wound back to where it began, several times; the last ticket has the rest of the training.

    After each of ``cycles`` equal parts of the share ``until`` of training the largest ``keep^(k / cycles)`` of all entries stay, with the values
    that they began with and no moments.

    *Shapes:* values (entries,) at places (entries,) of the matrix, and the values that all began with.

    *Needs and cost:* no statistics; the operations of several trainings, of fewer and fewer entries.

    *Reduces to:* dense training with ``keep=1``.

    *Raises:* ``SettingError`` for a share below one weight per row.

    *Differences from the paper:* all cycles are one training under one learning rate's schedule.

    Example:
        >>> Tickets(keep=0.25, cycles=2).density(Step(25, 100))
        0.5

    """

    paper: ClassVar[Paper | None] = Paper(
        title="The Lottery Ticket Hypothesis: Finding Sparse, Trainable Neural Networks",
        arxiv="1803.03635",
        year=2018,
        authors="Jonathan Frankle and Michael Carbin",
    )

    layers: str = param("global", "how the share is divided over layers", choices=("global", "uniform", "erk"))
    cycles: int = param(3, "times that it is pruned and wound back", between=(1, 100))
    until: float = param(0.5, "share of training that the cycles take", between=(0.0, 1.0))

    @override
    def begin(self, start: Start) -> State:
        """All of the weight, which is remembered."""
        dense = beginning(start)
        return sparse(dense, torch.arange(math.prod(start.shape)), start.common).having(frozen={"first": dense.reshape(-1).clone()})

    def done(self, step: Step) -> int:
        """Cycles that are over."""
        return sum(step.number >= max(1, round(self.until * step.total * cycle / self.cycles)) for cycle in range(1, self.cycles + 1))

    @override
    def density(self, step: Step) -> float:
        """What the cycle has."""
        return self.keep ** (self.done(step) / self.cycles)

    @override
    def revise(self, states: Mapping[str, State], gradients: Mapping[str, torch.Tensor], budget: int, step: Step) -> Revision | None:
        """The largest entries, wound back."""
        cycle = self.done(step)
        if step.number < 1 or cycle == self.done(Step(step.number - 1, step.total)):
            return None
        counts = {unit: self.entries(state, unit) for unit, state in states.items()}
        if cycle < self.cycles:
            whole = {unit: math.prod(state["shape"].tolist()) for unit, state in states.items()}
            counts = {
                unit: max(counts[unit], round(whole[unit] * (counts[unit] / whole[unit]) ** (cycle / self.cycles))) for unit in counts
            }
        sizes = {unit: state["values"].detach().abs() for unit, state in states.items()}
        chosen = highest(sizes, counts, together=self.layers == "global")
        revised = {}
        for unit, state in states.items():
            places = state["places"][chosen[unit]]
            revised[unit] = kept(state, places).having({"values": state["first"][places].clone()})
        return Revision(revised, {unit: {"values": torch.full((len(chosen[unit]),), -1)} for unit in revised})
