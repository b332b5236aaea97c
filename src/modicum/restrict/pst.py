"""Parameter-efficient sparsity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.parametrization import Start, State, Step
from modicum.core.settings import param
from modicum.restrict._falling import Falling
from modicum.restrict._family import beginning, masked, through, top

if TYPE_CHECKING:
    from modicum.forms import Form


@dataclass(frozen=True, kw_only=True)
class Pst(Falling):
    """A mask and a change of the weights learnt through thin matrices: few numbers are trained, and a sparse weight is stored.

    An entry's score is ``|W + U V| + A B + r + c`` with the product of two thin matrices and a number for each row and column; the highest stay, and
    the mask's gradient goes straight to the scores. The share used falls along a cubic to ``keep`` at the share ``until`` of training.

    *Shapes:* up (rows, rank), down (rank, columns), left (rows, rank), right (rank, columns), row (rows, 1), column (1, columns), trained; weight
    (rows, columns), frozen.

    *Needs and cost:* no statistics; 2 · rank · (rows + columns) + rows + columns trained numbers, dense products.

    *Reduces to:* gradual pruning by magnitude where nothing moves.

    *Raises:* ``SettingError`` for a share below one weight per row.

    *Differences from the paper:* scores are relative to the mean magnitude of the weight.

    Example:
        >>> str(Pst(keep=0.1))
        'pst keep=0.1'

    """

    paper: ClassVar[Paper | None] = Paper(
        title="Parameter-Efficient Sparsity for Large Language Models Fine-Tuning",
        arxiv="2205.11005",
        year=2022,
        authors="Yuchao Li and Fuli Luo and Chuanqi Tan and Mengdi Wang and Songfang Huang and Shen Li and Junjie Bai",
    )

    rank: int = param(8, "inner size of the thin matrices", between=(1, 65536))

    @override
    def begin(self, start: Start) -> State:
        """The weight, and products that are zero."""
        assert start.common is not None
        weight, (rows, columns) = beginning(start), start.shape
        draw = lambda: torch.randn(self.rank, columns, generator=start.chance) / columns**0.5
        zero = lambda *shape: torch.zeros(shape)
        trained = {
            "up": zero(rows, self.rank),
            "down": draw(),
            "left": zero(rows, self.rank),
            "right": draw(),
            "row": zero(rows, 1),
            "column": zero(1, columns),
        }
        entries = torch.tensor(self.entries(start.common, start.unit))
        return State(trained, {"weight": weight, "mean": weight.abs().mean().clamp_min(1e-30), "entries": entries}, start.common)

    def _changed(self, state: State) -> torch.Tensor:
        return torch.addmm(state["weight"], state["up"], state["down"])

    def _mask(self, state: State, changed: torch.Tensor, step: Step) -> torch.Tensor:
        """The highest scores (rows, columns), as many as there are at a step; their gradient is the mask's."""
        one = torch.ones_like  # the product and the numbers of rows and columns in one
        learnt = torch.cat([state["left"], state["row"], one(state["row"])], 1) @ torch.cat(
            [state["right"], one(state["column"]), state["column"]]
        )
        scores = changed.detach().abs().add_(learnt.detach(), alpha=float(state["mean"]))
        return through(learnt, top(scores, self.count(scores.numel(), int(state["entries"]), step)))

    @override
    def weight(self, base: torch.Tensor | None, state: State, step: Step) -> torch.Tensor:
        """The changed weights that are used."""
        changed = self._changed(state)
        return changed * self._mask(state, changed, step)

    @override
    def form(self, state: State) -> Form:
        """A mask, and the changed weights that it uses."""
        changed = self._changed(state).detach()
        mask = self._mask(state, changed, Step(1, 1)).detach() > 0
        return masked(changed[mask], mask)
