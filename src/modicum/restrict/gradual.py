"""Gradual magnitude pruning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.parametrization import Revision, State, Step
from modicum.restrict._falling import Pruning
from modicum.restrict._family import inside, kept


@dataclass(frozen=True, kw_only=True)
class Gradual(Pruning):
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

    @override
    def revise(self, states: Mapping[str, State], gradients: Mapping[str, torch.Tensor], budget: int, step: Step) -> Revision | None:
        """The smallest entries go, on the steps that prune and on the last of them."""
        if not self.prunes(step):
            return None
        revised, moments = {}, {}
        for unit, state in states.items():
            count = self.count(math.prod(state["shape"].tolist()), self.entries(state, unit), step)
            if count < len(state["values"]):
                chosen = state["values"].detach().abs().argsort(descending=True, stable=True)[:count].sort().values
                places = state["places"][chosen]
                revised[unit], moments[unit] = kept(state, places), {"values": inside(state, places)}
        return Revision(revised, moments)
