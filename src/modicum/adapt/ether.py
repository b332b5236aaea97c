"""ETHER."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from typing_extensions import override

from modicum.adapt._family import Adapter
from modicum.core.method import Paper
from modicum.core.parametrization import Start, State, Step
from modicum.core.settings import param
from modicum.forms import Reflected
from modicum.forms.reflected import reflect

if TYPE_CHECKING:
    from modicum.forms import Form


@dataclass(frozen=True, kw_only=True)
class Ether(Adapter):
    """A weight is reflected in trained hyperplanes, so that it moves no further at any learning rate.

    ``(I - 2 u uᵀ / |u|²) W`` in blocks of rows: the distance from the identity is 2 whatever the vector.

    *Shapes:* vectors (blocks, rows / blocks); the greatest divisor that ``blocks`` and the rows have in common is how many there are.

    *Needs and cost:* no statistics; rows trained numbers.

    *Reduces to:* no setting gives the base, for a reflection is never the identity.

    *Raises:* nothing of its own.

    *Differences from the paper:* outputs are reflected, not inputs.

    Example:
        >>> Ether.begins_at_base
        False

    """

    paper: ClassVar[Paper | None] = Paper(
        title="ETHER: Efficient Finetuning of Large-Scale Models with Hyperplane Reflections",
        arxiv="2405.20271",
        year=2024,
        authors="Massimo Bini and Karsten Roth and Zeynep Akata and Anna Khoreva",
    )
    rate: ClassVar[float] = 1e-1
    begins_at_base: ClassVar[bool] = False

    blocks: int = param(1, "blocks of rows that are reflected each by itself", between=(1, 65536))

    @override
    def begin(self, start: Start) -> State:
        """Random vectors."""
        blocks = math.gcd(self.blocks, start.shape[0])
        return State({"vectors": torch.randn(blocks, start.shape[0] // blocks, generator=start.chance)}, base=start.base)

    @override
    def weight(self, base: torch.Tensor | None, state: State, step: Step) -> torch.Tensor:
        """The base, reflected."""
        assert base is not None
        return reflect(base, state["vectors"])

    @override
    def form(self, state: State) -> Form:
        """The vectors on the base."""
        assert state.base is not None
        return Reflected(state.base, state["vectors"])
