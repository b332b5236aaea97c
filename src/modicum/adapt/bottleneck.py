"""Bottleneck adapters."""

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
class Bottleneck(Added):
    """Two thin layers with a nonlinearity between them stand behind each part of each block, and their output is added to its own.

    ``y + up @ gelu(down @ y + bias)``: up begins at zero.

    *Shapes:* down (rank, width), bias (rank,), up (width, rank).

    *Needs and cost:* no statistics; rank · (2 · width + 1) trained numbers per part, and as many multiplications per token. No weight can hold it.

    *Reduces to:* the base with up at zero, where training begins.

    *Raises:* ``ModelError`` for a model without blocks.

    *Differences from the paper:* norms are trained by a method of their own, such as ``shift``.

    Example:
        >>> str(Bottleneck(rank=4))
        'bottleneck rank=4'

    """

    paper: ClassVar[Paper | None] = Paper(
        title="Parameter-Efficient Transfer Learning for NLP",
        arxiv="1902.00751",
        year=2019,
        authors="Neil Houlsby and Andrei Giurgiu and Stanislaw Jastrzebski and Bruna Morrone and Quentin de Laroussilhe and others",
    )
    rate: ClassVar[float] = 1e-2

    rank: int = param(8, "width between the two layers", between=(1, 65536), dial=True)

    @override
    def begin(self, spot: Spot) -> State:
        """Random down, zero up."""
        wide = width(spot)
        bound = 1 / math.sqrt(wide)
        down = torch.empty(self.rank, wide).uniform_(-bound, bound, generator=spot.chance)
        return State({"down": down, "bias": torch.zeros(self.rank), "up": torch.zeros(wide, self.rank)})

    @override
    def adds(self, state: State, stream: torch.Tensor, call: Call) -> torch.Tensor:
        """Through the bottleneck."""
        return F.gelu(F.linear(stream, state["down"], state["bias"])) @ state["up"].T
