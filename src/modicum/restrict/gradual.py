"""Gradual magnitude pruning."""

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
from modicum.restrict._family import Sparsity, beginning, inside, kept, sparse


@dataclass(frozen=True, kw_only=True)
class Gradual(Sparsity):
    """Trained whole at first; the smallest entries go little by little, fast at the beginning and slowly at the end.

    After the share t of the time between ``since`` and ``until``, ``keep + (1 - keep) · (1 - t)³`` of the entries are there. What has gone does
    not come back.

    *Shapes:* values (entries,) at places (entries,) of the matrix, row by row; fewer and fewer.

    *Needs and cost:* no statistics; as many trained numbers as there are entries, and their optimizer's state.

    *Reduces to:* dense training with ``keep=1``; pruning at once with ``since`` equal to ``until``.

    *Raises:* ``SettingError`` for a share below one weight per row.

    *Differences from the paper:* none known.

    Example:
        >>> Gradual(keep=0.2, since=0.0, until=1.0).density(Step(1, 2))
        0.3

    """

    paper: ClassVar[Paper | None] = Paper(
        title="To prune, or not to prune: exploring the efficacy of pruning for model compression",
        arxiv="1710.01878",
        year=2017,
        authors="Michael Zhu and Suyog Gupta",
    )

    layers: str = param("uniform", "how the share is divided over layers", choices=("uniform", "erk"))
    since: float = param(0.25, "share of training before which nothing goes", between=(0.0, 1.0))
    until: float = param(0.75, "share of training after which nothing goes", between=(0.0, 1.0))
    every: int = param(20, "updates from one pruning to the next", between=(1, 10**9))

    @override
    def begin(self, start: Start) -> State:
        """All of the weight."""
        return sparse(beginning(start), torch.arange(math.prod(start.shape)), start.common)

    def left(self, step: Step) -> float:
        """Share of what is to go that is still there, from 1 to 0."""
        if step.number >= self._last(step):
            return 0.0
        return max(0.0, 1 - max(0.0, step.share - self.since) / max(1e-9, self.until - self.since)) ** 3

    @override
    def density(self, step: Step) -> float:
        """What the schedule says."""
        return round(self.keep + (1 - self.keep) * self.left(step), 12)

    def _last(self, step: Step) -> int:
        return min(step.total, math.ceil(max(self.since, self.until) * step.total))

    @override
    def revise(self, states: Mapping[str, State], gradients: Mapping[str, torch.Tensor], budget: int, step: Step) -> Revision | None:
        """The smallest entries go, on the steps that prune and on the last of them."""
        if step.number < self.since * step.total or (step.number % self.every and step.number != self._last(step)):
            return None
        revised, moments = {}, {}
        for unit, state in states.items():
            size, end = math.prod(state["shape"].tolist()), self.entries(state, unit)
            count = end + round((size - end) * self.left(step))
            if count < len(state["values"]):
                chosen = state["values"].detach().abs().argsort(descending=True, stable=True)[:count].sort().values
                places = state["places"][chosen]
                revised[unit], moments[unit] = kept(state, places), {"values": inside(state, places)}
        return Revision(revised, moments)
