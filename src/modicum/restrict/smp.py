"""Static model pruning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.parametrization import Start, State, Step
from modicum.restrict._falling import Falling
from modicum.restrict._family import beginning, masked, through, top

if TYPE_CHECKING:
    from modicum.forms import Form


@dataclass(frozen=True, kw_only=True)
class Smp(Falling):
    """Weights stay as they are and only a score of each is trained: the highest scores say which weights are used.

    The gradient of the mask goes straight to the scores, which begin at the magnitudes relative to their mean; the share of weights used falls along
    a cubic to ``keep`` at the share ``until`` of training.

    *Shapes:* scores (rows, columns), trained; weight (rows, columns), frozen.

    *Needs and cost:* no statistics; rows · columns trained numbers, of which a mask is learnt.

    *Reduces to:* magnitude pruning without training.

    *Raises:* ``SettingError`` for a share below one weight per row.

    *Differences from the paper:* what is stored is the masked weight, not a mask beside the base; no regularizer.

    Example:
        >>> str(Smp(keep=0.1))
        'smp keep=0.1'

    """

    paper: ClassVar[Paper | None] = Paper(
        title="Pruning Pre-trained Language Models Without Fine-Tuning",
        arxiv="2210.06210",
        year=2022,
        authors="Ting Jiang and Deqing Wang and Fuzhen Zhuang and Ruobing Xie and Feng Xia",
    )

    @override
    def begin(self, start: Start) -> State:
        """The weight, and its magnitudes as scores."""
        assert start.common is not None
        weight, end = beginning(start), self.entries(start.common, start.unit)
        scores = weight.abs() / weight.abs().mean().clamp_min(1e-30)
        return State({"scores": scores}, {"weight": weight, "entries": torch.tensor(end)}, start.common)

    def mask(self, state: State, step: Step) -> torch.Tensor:
        """1 at the highest scores (rows, columns), as many as there are at a step, else 0."""
        scores = state["scores"].detach()
        return top(scores, self.count(scores.numel(), int(state["entries"]), step))

    @override
    def weight(self, base: torch.Tensor | None, state: State, step: Step) -> torch.Tensor:
        """The weights used; a score's gradient is that of its weight's share in the product."""
        return state["weight"] * through(state["scores"], self.mask(state, step))

    @override
    def form(self, state: State) -> Form:
        """A mask, and the weights that it uses."""
        mask = self.mask(state, Step(1, 1)) > 0
        return masked(state["weight"][mask], mask)
