"""R-AMT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from typing_extensions import override

from modicum.adapt._family import Adapter, counted, scatter
from modicum.core.method import Paper
from modicum.core.parametrization import Revision, Start, State, Step
from modicum.core.settings import param
from modicum.forms import Switched
from modicum.forms.leaves import scattered

if TYPE_CHECKING:
    from modicum.forms import Form


@dataclass(frozen=True, kw_only=True)
class Ramt(Adapter):
    """No weight is changed: of the entries that the loss feels most some are switched off, and a file holds bits alone.

    ``W · M`` with M zero where a trained score is below zero; scores take the gradient of M as it is. After the first update they move to
    the places of the largest gradients, and begin there anew.

    *Shapes:* scores (count,), count = keep · rows · columns.

    *Needs and cost:* the whole weights' gradients at the first update; count trained numbers, one bit per entry stored.

    *Reduces to:* the base with all scores above zero, where training begins.

    *Raises:* nothing of its own.

    *Differences from the paper:* gradients that oppose what the model knew are dropped by ``modicum.train.guided``, in a loop that has both losses.

    Example:
        >>> str(Ramt(keep=0.05))
        'ramt keep=0.05'

    """

    paper: ClassVar[Paper | None] = Paper(
        title="Regularized Mask Tuning: Uncovering Hidden Knowledge in Pre-trained Vision-Language Models",
        arxiv="2307.15049",
        year=2023,
        authors="Kecheng Zheng and Wei Wu and Ruili Feng and Kai Zhu and Jiawei Liu and Deli Zhao and Zheng-Jun Zha and others",
    )
    rate: ClassVar[float] = 3e-2

    keep: float = param(0.1, "share of entries that may be switched", between=(1e-9, 1.0), dial=True)
    first: float = param(0.005, "score that each begins with", between=(1e-9, 1e3))

    @override
    def begin(self, start: Start) -> State:
        """All on, at places of chance."""
        places = scattered(start.seed, counted(self.keep, start), start.shape[0] * start.shape[1])
        return State({"scores": torch.full((len(places),), self.first)}, {"places": places}, base=start.base)

    @override
    def weight(self, base: torch.Tensor | None, state: State, step: Step) -> torch.Tensor:
        """The base where it is on."""
        assert base is not None
        scores = state["scores"]
        off = torch.where(scores <= 0, 1.0, 0.0) + (scores.detach() - scores)  # the switch, with the gradient of the score
        return base - scatter(off * base.reshape(-1)[state["places"]], state["places"], (base.shape[0], base.shape[1]))

    @override
    def form(self, state: State) -> Form:
        """One bit for each entry."""
        assert state.base is not None
        rows, columns = state.base.shape
        off = torch.zeros(rows * columns, dtype=torch.bool).index_copy(0, state["places"].cpu(), (state["scores"] <= 0).cpu())
        return Switched(state.base, ~off.reshape(rows, columns))

    @override
    def watches(self, step: Step) -> bool:
        """At the first update."""
        return step.number == 1

    @override
    def revise(self, states: Mapping[str, State], gradients: Mapping[str, torch.Tensor], budget: int, step: Step) -> Revision | None:
        """Scores at the largest gradients of each weight."""
        if not gradients:
            return None
        revised, kept = {}, {}
        for unit, gradient in gradients.items():
            count = len(states[unit]["scores"])
            places = gradient.reshape(-1).abs().argsort(descending=True, stable=True)[:count].sort().values
            revised[unit] = states[unit].having({"scores": torch.full((count,), self.first)}, {"places": places})
            kept[unit] = {"scores": torch.full((count,), -1)}
        return Revision(revised, kept)
