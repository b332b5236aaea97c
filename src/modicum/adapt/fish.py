"""FISH."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from modicum.adapt._family import SparseAdapter, counted
from modicum.core.method import Paper
from modicum.core.parametrization import Revision, Start, State, Step
from modicum.core.settings import param
from modicum.forms.leaves import scattered


@dataclass(frozen=True, kw_only=True)
class Fish(SparseAdapter):
    """The entries that the loss feels most are trained, found once by their gradients.

    ``W + S``: after the first update entries move to the places of the largest squared gradients, and begin there at zero.

    *Shapes:* entries (count,), count = keep · rows · columns.

    *Needs and cost:* the whole weights' gradients at the first update; as many trained numbers as entries.

    *Reduces to:* full fine-tuning with ``keep=1``, but for the first update.

    *Raises:* nothing of its own.

    *Differences from the paper:* the gradient of one batch is squared, not that of each example; each weight has its share of entries.

    Example:
        >>> Fish(keep=0.01).watches(Step(1, 100)), Fish(keep=0.01).watches(Step(2, 100))
        (True, False)

    """

    paper: ClassVar[Paper | None] = Paper(
        title="Training Neural Networks with Fixed Sparse Masks",
        arxiv="2111.09839",
        year=2021,
        authors="Yi-Lin Sung and Varun Nair and Colin Raffel",
    )
    rate: ClassVar[float] = 1e-2

    keep: float = param(0.01, "share of entries that are trained", between=(1e-9, 1.0), dial=True)

    @override
    def begin(self, start: Start) -> State:
        """Zeros at places of chance."""
        places = scattered(start.seed, counted(self.keep, start), start.shape[0] * start.shape[1])
        return State({"entries": torch.zeros(len(places))}, {"places": places}, base=start.base)

    @override
    def watches(self, step: Step) -> bool:
        """At the first update."""
        return step.number == 1

    @override
    def revise(self, states: Mapping[str, State], gradients: Mapping[str, torch.Tensor], budget: int, step: Step) -> Revision | None:
        """Entries at the largest gradients of each weight."""
        if not gradients:
            return None
        revised, kept = {}, {}
        for unit, gradient in gradients.items():
            count = len(states[unit]["entries"])
            places = gradient.reshape(-1).abs().argsort(descending=True, stable=True)[:count].sort().values
            revised[unit] = states[unit].having({"entries": torch.zeros_like(states[unit]["entries"])}, {"places": places})
            kept[unit] = {"entries": torch.full((count,), -1)}
        return Revision(revised, kept)
