"""Bottleneck adapters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from typing_extensions import override

from modicum.adapt._added import Added, width
from modicum.core.aside import Call, Spot
from modicum.core.method import Paper
from modicum.core.parametrization import State
from modicum.core.settings import param
from modicum.models.structure import find_blocks
from modicum.models.weights import Weights


@dataclass(frozen=True, kw_only=True)
class Bottleneck(Added):
    """Two thin layers with a nonlinearity between them stand behind each part of each block, and their output is added to its own.

    ``y + up @ gelu(down @ y + bias)``: up begins at zero. Behind the ``last`` part of a block alone (Pfeiffer), or beside a part, on what that is
    given (``parallel``).

    *Shapes:* down (rank, width), bias (rank,), up (width, rank).

    *Needs and cost:* no statistics; rank · (2 · width + 1) trained numbers per part, and as many multiplications per token. No weight can hold it.

    *Reduces to:* the base with up at zero, where training begins unless it is not ``residual``.

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
    rate: ClassVar[float] = 3e-2

    rank: int = param(8, "width between the two layers", between=(1, 65536), dial=True)
    behind: str = param("all", "parts of a block that have one: all, or the last", choices=("all", "last"))
    parallel: bool = param(False, "whether it takes what its part is given, not what that gives")
    residual: bool = param(
        True, "whether what the part gives stays beside what it adds; else that takes its place, which is not the base at first"
    )

    @override
    def places(self, root: nn.Module) -> list[str]:
        """Parts of blocks, or of each block the last."""
        found = super().places(root)
        if self.behind == "all":
            return found
        blocks = find_blocks(root, Weights(root))
        return [[part for part in found if f"{part}.".startswith(f"{block}.")][-1] for block in blocks]

    @override
    def begin(self, spot: Spot) -> State:
        """Random down, zero up."""
        wide = width(spot)
        bound = 1 / math.sqrt(wide)
        down = torch.empty(self.rank, wide).uniform_(-bound, bound, generator=spot.chance)
        up = torch.zeros(wide, self.rank)
        if not self.residual:
            up.uniform_(-(edge := 1 / math.sqrt(self.rank)), edge, generator=spot.chance)
        return State({"down": down, "bias": torch.zeros(self.rank), "up": up})

    @override
    def adds(self, state: State, stream: torch.Tensor, call: Call) -> torch.Tensor:
        """Through the bottleneck."""
        given = stream
        if self.parallel:
            given = next(value for value in (*call.args, *call.named.values()) if isinstance(value, torch.Tensor)).float()
        found = F.gelu(F.linear(given, state["down"], state["bias"])) @ state["up"].T
        return found if self.residual else found - stream
