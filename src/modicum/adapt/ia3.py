"""IA3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from typing_extensions import override

from modicum.adapt._family import Adapter
from modicum.core.method import Paper
from modicum.core.parametrization import Start, State, Step
from modicum.core.settings import param
from modicum.forms import Diagonal

if TYPE_CHECKING:
    from modicum.forms import Form


@dataclass(frozen=True, kw_only=True)
class Ia3(Adapter):
    """Each output of a layer, or each input, is multiplied by one trained number.

    ``diag(rows) · W``, or ``W · diag(columns)``: of keys, values and what goes into the last layer of a feed-forward part in the paper.

    *Shapes:* numbers (rows,) or (columns,).

    *Needs and cost:* no statistics; one trained number per output or input, and no multiplications per token once merged.

    *Reduces to:* the base with all numbers at one, where training begins.

    *Raises:* nothing of its own.

    *Differences from the paper:* which layers have it is the plan's to say.

    Example:
        >>> str(Ia3(side="inputs"))
        'ia3 side=inputs'

    """

    paper: ClassVar[Paper | None] = Paper(
        title="Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning",
        arxiv="2205.05638",
        year=2022,
        authors="Haokun Liu and Derek Tam and Mohammed Muqeeth and Jay Mohta and Tenghao Huang and Mohit Bansal and Colin Raffel",
    )
    rate: ClassVar[float] = 7e-2

    side: str = param("outputs", "what is multiplied", choices=("outputs", "inputs"))

    @override
    def begin(self, start: Start) -> State:
        """Ones."""
        return State({"numbers": torch.ones(start.shape[0 if self.side == "outputs" else 1])}, base=start.base)

    @override
    def weight(self, base: torch.Tensor | None, state: State, step: Step) -> torch.Tensor:
        """The base with rows or columns multiplied."""
        assert base is not None
        return base * (state["numbers"][:, None] if self.side == "outputs" else state["numbers"])

    @override
    def product(self, base: Form | None, state: State, x: torch.Tensor, step: Step) -> torch.Tensor | None:
        """Outputs or inputs multiplied."""
        assert base is not None
        numbers = state["numbers"].to(x.dtype)
        return base.product(x) * numbers if self.side == "outputs" else base.product(x * numbers)

    @override
    def form(self, state: State) -> Form:
        """A vector on the base."""
        assert state.base is not None
        return Diagonal(state.base, **{"rows" if self.side == "outputs" else "columns": state["numbers"]})
