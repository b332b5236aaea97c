"""What methods share whose share of entries falls along a cubic: trained whole at first, as few as are kept in the end."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from typing_extensions import override

from modicum.core.parametrization import Start, State, Step
from modicum.core.settings import param
from modicum.restrict._family import Sparsity, beginning, sparse


@dataclass(frozen=True, kw_only=True)
class Falling(Sparsity):
    """Of what is to go, ``(1 - t)³`` is there after the share t of the time from ``since`` to ``until``."""

    layers: str = param("uniform", "how the share is divided over layers", choices=("uniform", "erk"))
    since: float = param(0.0, "share of training before which nothing goes", between=(0.0, 1.0))
    until: float = param(0.6, "share of training after which nothing goes", between=(0.0, 1.0))

    def last(self, step: Step) -> int:
        """The update after which nothing goes any more."""
        return min(step.total, math.ceil(max(self.since, self.until) * step.total))

    def left(self, step: Step) -> float:
        """Share of what is to go that is still there, from 1 to 0."""
        if step.number >= self.last(step):
            return 0.0
        return max(0.0, 1 - max(0.0, step.share - self.since) / max(1e-9, self.until - self.since)) ** 3

    def count(self, size: int, end: int, step: Step) -> int:
        """Entries at a step of a weight of ``size`` that has ``end`` in the end."""
        return end + round((size - end) * self.left(step))

    @override
    def density(self, step: Step) -> float:
        """What the schedule says."""
        return round(self.keep + (1 - self.keep) * self.left(step), 12)


@dataclass(frozen=True, kw_only=True)
class Pruning(Falling):
    """The same in rounds, ``every`` so many updates: what has gone takes no numbers, and does not come back."""

    since: float = param(0.25, "share of training before which nothing goes", between=(0.0, 1.0))
    until: float = param(0.75, "share of training after which nothing goes", between=(0.0, 1.0))
    every: int = param(20, "updates from one pruning to the next", between=(1, 10**9))

    @override
    def begin(self, start: Start) -> State:
        """All of the weight."""
        return sparse(beginning(start), torch.arange(math.prod(start.shape)), start.common)

    def prunes(self, step: Step) -> bool:
        """Whether entries go after this update: in every round, and on the last update that there is to do so."""
        return step.number >= self.since * step.total and (step.number % self.every == 0 or step.number == self.last(step))
