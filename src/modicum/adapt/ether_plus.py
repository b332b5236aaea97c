"""ETHER+."""

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
from modicum.forms import Swapped
from modicum.forms.swapped import swap

if TYPE_CHECKING:
    from modicum.forms import Form


@dataclass(frozen=True, kw_only=True)
class EtherPlus(Adapter):
    """On both sides of a weight one trained direction is exchanged for another, so that it moves as little as wanted and never far.

    ``H W G`` with ``H = I - u uᵀ + v vᵀ`` in blocks of rows and G alike of columns; u and v have length one, and begin equal.

    *Shapes:* two vectors of rows and two of columns, in blocks; the greatest divisor that ``blocks`` and a side have in common is how many there are.

    *Needs and cost:* no statistics; 2 · (rows + columns) trained numbers.

    *Reduces to:* the base where u is v, at which training begins.

    *Raises:* nothing of its own.

    *Differences from the paper:* pairs begin equal, at the base; the paper draws them.

    Example:
        >>> EtherPlus.begins_at_base
        True

    """

    paper: ClassVar[Paper | None] = Paper(
        title="ETHER: Efficient Finetuning of Large-Scale Models with Hyperplane Reflections",
        arxiv="2405.20271",
        year=2024,
        authors="Massimo Bini and Karsten Roth and Zeynep Akata and Anna Khoreva",
    )
    rate: ClassVar[float] = 1e-1

    blocks: int = param(1, "blocks of rows and of columns that change each by itself", between=(1, 65536))

    @override
    def begin(self, start: Start) -> State:
        """Random vectors, equal in each pair."""
        found: dict[str, torch.Tensor] = {}
        for side, size in zip(("rows", "columns"), start.shape):
            blocks = math.gcd(self.blocks, size)
            vectors = torch.randn(blocks, size // blocks, generator=start.chance)
            found |= {f"{side} away": vectors, f"{side} toward": vectors.clone()}
        return State(found, base=start.base)

    @override
    def weight(self, base: torch.Tensor | None, state: State, step: Step) -> torch.Tensor:
        """The base with directions exchanged on both sides."""
        assert base is not None
        within = swap(base.T, state["columns away"], state["columns toward"]).T
        return swap(within, state["rows away"], state["rows toward"])

    @override
    def form(self, state: State) -> Form:
        """The vectors on the base."""
        assert state.base is not None
        within = Swapped(state.base, state["columns away"], state["columns toward"], columns=True)
        return Swapped(within, state["rows away"], state["rows toward"])
