"""SET."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.parametrization import Revision, Start, State, Step
from modicum.core.settings import param
from modicum.restrict._family import Sparsity, moved


@dataclass(frozen=True, kw_only=True)
class Set(Sparsity):
    """A sparse weight whose smallest entries give their places to others drawn at random.

    Every ``every`` steps until the share ``until`` of training the share ``renewed`` of a weight's entries is dropped by magnitude, and as many
    places are drawn among the free ones; new entries begin at zero.

    *Shapes:* values (entries,) at places (entries,) of the matrix, row by row.

    *Needs and cost:* no gradients of whole weights; entries trained numbers.

    *Reduces to:* training under a fixed mask with ``renewed=0``.

    *Raises:* ``SettingError`` for a share below one weight per row.

    *Differences from the paper:* entries are dropped by magnitude alone, not apart for each sign.

    Example:
        >>> str(Set(keep=0.2))
        'set keep=0.2'

    """

    paper: ClassVar[Paper | None] = Paper(
        title="Scalable Training of Artificial Neural Networks with Adaptive Sparse Connectivity inspired by Network Science",
        arxiv="1707.04780",
        year=2017,
        authors="Decebal Constantin Mocanu and Elena Mocanu and Peter Stone and Phuong H. Nguyen and Madeleine Gibescu and Antonio Liotta",
    )

    renewed: float = param(0.3, "share of a weight's entries that a renewal moves", between=(0.0, 1.0))
    every: int = param(100, "updates from one renewal to the next", between=(1, 10**9))
    until: float = param(0.75, "share of training after which places stay", between=(0.0, 1.0))

    @override
    def begin(self, start: Start) -> State:
        """Random places, and the seed of those to come."""
        return super().begin(start).having(frozen={"seed": torch.tensor(start.seed)})

    @override
    def revise(self, states: Mapping[str, State], gradients: Mapping[str, torch.Tensor], budget: int, step: Step) -> Revision | None:
        """Places renewed in each weight."""
        if not self.renewed or step.number % self.every or not 0 < step.number < self.until * step.total:
            return None
        revised, kept = {}, {}
        for unit, state in states.items():
            chance = torch.Generator().manual_seed((int(state["seed"]) + step.number) % 2**63)
            rows, columns = state["shape"].tolist()
            wanted = torch.rand(rows * columns, generator=chance).to(state["values"].device)
            revised[unit], kept[unit] = moved(state, wanted, int(self.renewed * len(state["values"])))
        return Revision(revised, kept)
