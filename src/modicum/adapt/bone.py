"""Bone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from typing_extensions import override

from modicum.adapt._family import Adapter
from modicum.core.method import Paper
from modicum.core.parametrization import Start, State, Step
from modicum.core.settings import param
from modicum.forms import Affine
from modicum.forms.affine import affine

if TYPE_CHECKING:
    from modicum.forms import Form


@dataclass(frozen=True, kw_only=True)
class Bone(Adapter):
    """Square blocks of a weight are multiplied by a small matrix and it is added to them, one for each row of blocks.

    ``W_ij + (W_ij B_i + B_i)``: the matrices begin at zero.

    *Shapes:* blocks (rows / size, size, size); size is the largest number up to ``rank`` that divides both sides.

    *Needs and cost:* no statistics; size · rows trained numbers.

    *Reduces to:* the base with all matrices at zero, where training begins.

    *Raises:* nothing of its own.

    *Differences from the paper:* none known; where no size above one divides both sides, each row has one number.

    Example:
        >>> str(Bone(rank=16))
        'bone rank=16'

    """

    paper: ClassVar[Paper | None] = Paper(
        title="Bone: Block Affine Transformation as Parameter Efficient Fine-tuning Methods for Large Language Models",
        arxiv="2409.15371",
        year=2024,
        authors="Jiale Kang",
    )
    rate: ClassVar[float] = 4e-3

    rank: int = param(8, "side of a block, at most", between=(1, 65536), dial=True)

    @override
    def begin(self, start: Start) -> State:
        """Zeros."""
        rows, columns = start.shape
        size = max(each for each in range(1, min(self.rank, rows, columns) + 1) if rows % each == 0 == columns % each)
        return State({"blocks": torch.zeros(rows // size, size, size)}, base=start.base)

    @override
    def weight(self, base: torch.Tensor | None, state: State, step: Step) -> torch.Tensor:
        """The base and what its blocks become."""
        assert base is not None
        return affine(base, state["blocks"])

    @override
    def form(self, state: State) -> Form:
        """The small matrices on the base."""
        assert state.base is not None
        return Affine(state.base, state["blocks"])
