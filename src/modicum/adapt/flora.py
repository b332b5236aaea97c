"""FLoRA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from typing_extensions import override

from modicum.adapt._family import Adapter
from modicum.core.method import Paper
from modicum.core.parametrization import Start, State, Step
from modicum.core.settings import param
from modicum.forms import Sum, Tucker
from modicum.forms.tucker import expanded

if TYPE_CHECKING:
    from modicum.forms import Form


@dataclass(frozen=True, kw_only=True)
class Flora(Adapter):
    """A weight's change is a small core with a factor for each of its sides, so that a convolution keeps its kernel's shape.

    ``W + alpha · core ×₁ rows ×₂ inputs ×₃ height ×₄ width``: the core begins at zero.

    *Shapes:* core (r₁, r₂, ...), factors (side, r), where r is ``rank`` or ``kernel`` and the side at most; a linear layer has two sides.

    *Needs and cost:* no statistics; Π r + Σ side · r trained numbers.

    *Reduces to:* a low-rank change with a core between its factors, on linear layers.

    *Raises:* nothing of its own.

    *Differences from the paper:* none known.

    Example:
        >>> str(Flora(rank=4))
        'flora rank=4'

    """

    paper: ClassVar[Paper | None] = Paper(
        title="FLoRA: Low-Rank Core Space for N-dimension",
        arxiv="2405.14739",
        year=2024,
        authors="Chongjie Si and Xuehui Wang and Xue Yang and Zhengqin Xu and Qingyun Li and Jifeng Dai and Yu Qiao and others",
    )
    rate: ClassVar[float] = 1e-2

    rank: int = param(8, "core's size along outputs and inputs", between=(1, 65536), dial=True)
    kernel: int = param(3, "core's size along the sides of a kernel", between=(1, 65536))
    alpha: float = param(4.0, "strength: what the change is multiplied by", between=(0.0, 1e6))

    @override
    def begin(self, start: Start) -> State:
        """Random orthonormal factors, zero core."""
        sides = start.sides or start.shape
        ranks = [min(self.rank if at < 2 else self.kernel, side) for at, side in enumerate(sides)]
        factors = {
            f"factor{at}": torch.linalg.qr(torch.randn(side, rank, generator=start.chance)).Q
            for at, (side, rank) in enumerate(zip(sides, ranks))
        }
        return State({"core": torch.zeros(ranks), **factors}, base=start.base)

    def _parts(self, state: State) -> tuple[torch.Tensor, list[torch.Tensor]]:
        return state["core"] * self.alpha, [state[f"factor{at}"] for at in range(state["core"].ndim)]

    @override
    def weight(self, base: torch.Tensor | None, state: State, step: Step) -> torch.Tensor:
        """The base and the expanded core."""
        assert base is not None
        return base + expanded(*self._parts(state))

    @override
    def form(self, state: State) -> Form:
        """Core and factors beside the base."""
        assert state.base is not None
        return Sum((state.base, Tucker(*self._parts(state))))
