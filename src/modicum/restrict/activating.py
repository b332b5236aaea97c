"""Activating while pruning."""

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
from modicum.restrict._falling import Pruning
from modicum.restrict._family import inside, kept


@dataclass(frozen=True, kw_only=True)
class Activating(Pruning):
    """Gradual pruning, of which a share serves rows that are dead: their most negative entries go, so that the unit behind answers again.

    A row is dead in an update where no gradient reaches it, which is so where the rectifier behind it is silent for all of the batch. In every
    round ``share`` of what goes are negative entries of rows that were dead in more than ``dead`` of the updates since the last round, those of the
    deadest first; the rest are the smallest entries of all, as for ``gradual``, whose schedule it has.

    *Shapes:* values (entries,) at places (entries,) of the matrix, row by row; fewer and fewer.

    *Needs and cost:* whole weights' gradients on ``looking`` updates before each round; as many trained numbers as there are entries.

    *Reduces to:* gradual pruning with ``share=0``, and where no row is ever dead.

    *Raises:* ``SettingError`` for a share below one weight per row.

    *Differences from the paper:* dead is told by gradients, over batches instead of single inputs, so that no module has to be hooked.

    Example:
        >>> str(Activating(keep=0.2))
        'activating keep=0.2'

    """

    paper: ClassVar[Paper | None] = Paper(
        title="AP: Selective Activation for De-sparsifying Pruned Neural Networks",
        arxiv="2212.06145",
        year=2022,
        authors="Shiyu Liu and Rohan Ghosh and Dylan Tan and Mehul Motani",
    )

    share: float = param(0.3, "share of what goes that serves dead rows", between=(0.0, 1.0))
    dead: float = param(0.1, "share of updates in which a row is silent from which on it is dead", between=(0.0, 1.0))
    looking: int = param(5, "updates before a round in which rows are looked at", between=(1, 10**9))

    @override
    def begin(self, start: Start) -> State:
        """All of the weight, no row of which was silent."""
        return super().begin(start).having(frozen={"silent": torch.zeros(start.shape[0]), "seen": torch.zeros(1)})

    @override
    def watches(self, step: Step) -> bool:
        """On updates before a round, while rounds go on."""
        if not self.share or step.number < 1 or step.number > self.last(step):
            return False
        return any(self.prunes(Step(step.number + ahead, step.total)) for ahead in range(self.looking))

    @override
    def revise(self, states: Mapping[str, State], gradients: Mapping[str, torch.Tensor], budget: int, step: Step) -> Revision | None:
        """Silent rows are counted; on the steps that prune, entries go."""
        revised, moments = dict[str, State](), dict[str, dict[str, torch.Tensor]]()
        for unit, state in states.items():
            if unit in gradients:
                silent = state["silent"] + (gradients[unit] == 0).all(1).float().cpu()
                state = revised[unit] = state.having(frozen={"silent": silent, "seen": state["seen"] + 1})
            count = self.count(math.prod(state["shape"].tolist()), self.entries(state, unit), step)
            if self.prunes(step) and count < len(state["values"]):
                places = self._staying(state, count)
                moments[unit] = {"values": inside(state, places)}
                fresh = {name: torch.zeros_like(state[name]) for name in ("silent", "seen")}
                revised[unit] = kept(state, places).having(frozen=fresh)
        return Revision(revised, moments) if revised else None

    def _staying(self, state: State, count: int) -> torch.Tensor:
        """Places (count,) of the entries that stay."""
        values, rows = state["values"].detach(), state["places"] // int(state["shape"][1])
        rate = (state["silent"] / state["seen"].clamp_min(1)).to(values.device)[rows]
        reached = ((rate > self.dead) & (values < 0)).nonzero()[:, 0]
        order = reached[torch.argsort(values[reached], stable=True)]  # the most negative first, within the deadest row
        order = order[rate[order].argsort(descending=True, stable=True)][: int(self.share * (len(values) - count))]
        worth = values.abs().index_fill(0, order, -1.0)
        return state["places"][worth.argsort(descending=True, stable=True)[:count].sort().values]
