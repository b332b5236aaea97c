"""A random mask that stays."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.parametrization import Start, State
from modicum.forms import Sparse
from modicum.forms.leaves import scattered
from modicum.restrict._family import Shapes, Sparsity, beginning, sparse

if TYPE_CHECKING:
    from modicum.forms import Form


@dataclass(frozen=True, kw_only=True)
class Random(Sparsity):
    """A sparse weight whose places are drawn once from a seed, which is all that a file holds of them.

    *Shapes:* values (entries,) at places (entries,) of the matrix, row by row.

    *Needs and cost:* no statistics; entries trained numbers and no mask on the disk.

    *Reduces to:* dense training with ``keep=1``.

    *Raises:* ``SettingError`` for a share below one weight per row.

    *Differences from the paper:* one mask is drawn; searching among several by their first loss, which the paper finds not to help, is left out.

    Example:
        >>> str(Random(keep=0.2))
        'random keep=0.2'

    """

    paper: ClassVar[Paper | None] = Paper(
        title="Random Search as a Baseline for Sparse Neural Network Architecture Search", arxiv="2403.08265", year=2024, authors="Rezsa Farahani",
    )  # fmt: skip

    @override
    def begin(self, start: Start) -> State:
        """Places of the seed, with the entries that the weight has there."""
        assert start.common is not None
        places = scattered(start.seed, self.entries(start.common, start.unit), math.prod(start.shape))
        return sparse(beginning(start), places, start.common).having(frozen={"seed": torch.tensor(start.seed)})

    @override
    def form(self, state: State) -> Form:
        """Values under a seed."""
        rows, columns = state["shape"].tolist()
        return Sparse(state["values"], (rows, columns), seed=int(state["seed"]))

    @override
    def outlines(self, shapes: Shapes) -> dict[str, Form]:
        """Values alone."""
        common = self.common(shapes, torch.Generator(), 0)
        assert common is not None
        return {unit: Sparse(torch.zeros(self.entries(common, unit)), shape, seed=0) for unit, shape in shapes.items()}
