"""Connected adapters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from typing_extensions import override

from modicum.adapt._added import Added, width
from modicum.core.aside import Call, Spot
from modicum.core.method import Paper
from modicum.core.parametrization import State
from modicum.core.settings import param


@dataclass(frozen=True, kw_only=True)
class Connected(Added):
    """Bottleneck layers that hand on what they made to the next ones, so that a gradient reaches the first of them beside the model.

    ``c = tanh(down @ y + bias + gate · c before)`` and ``y + up @ c``: up begins at zero, gates at one.

    *Shapes:* down (rank, width), bias and gate (rank,), up (width, rank).

    *Needs and cost:* no statistics; rank · (2 · width + 2) trained numbers per part. No weight can hold it.

    *Reduces to:* ``bottleneck`` with gates at zero, but for the nonlinearity.

    *Raises:* ``ModelError`` for a model without blocks.

    *Differences from the paper:* what links adapters is a gate for each number, not a module of its own.

    Example:
        >>> str(Connected(rank=4))
        'connected rank=4'

    """

    paper: ClassVar[Paper | None] = Paper(
        title="Scattered or Connected? An Optimized Parameter-efficient Tuning Approach for Information Retrieval",
        arxiv="2208.09847",
        year=2022,
        authors="Xinyu Ma and Jiafeng Guo and Ruqing Zhang and Yixing Fan and Xueqi Cheng",
    )
    rate: ClassVar[float] = 3e-2

    rank: int = param(8, "width between the two layers, and of what is handed on", between=(1, 65536), dial=True)

    @override
    def begin(self, spot: Spot) -> State:
        """Random down, zero up, open gates."""
        wide = width(spot)
        bound = 1 / math.sqrt(wide)
        down = torch.empty(self.rank, wide).uniform_(-bound, bound, generator=spot.chance)
        return State({"down": down, "bias": torch.zeros(self.rank), "gate": torch.ones(self.rank), "up": torch.zeros(wide, self.rank)})

    @override
    def adds(self, state: State, stream: torch.Tensor, call: Call) -> torch.Tensor:
        """Through the bottleneck, with what came before."""
        before = call.memory.get("handed on")
        made = F.linear(stream, state["down"], state["bias"])
        call.memory["handed on"] = made = torch.tanh(made + state["gate"] * (torch.zeros_like(made) if before is None else before))
        return made @ state["up"].T
