"""SNNK."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from typing_extensions import override

from modicum.adapt._added import Added, width
from modicum.core.aside import Call, Spot
from modicum.core.method import Paper
from modicum.core.parametrization import State
from modicum.core.settings import param
from modicum.forms import Seeded


@dataclass(frozen=True, kw_only=True)
class Snnk(Added):
    """Adapters without a first layer: random features of the stream, drawn from a seed, and one trained matrix.

    ``y + kernel @ φ(G y)`` with ``φ = (sin, cos) / √features``: a layer, its nonlinearity and the next layer as one product.

    *Shapes:* kernel (width, features); G (features / 2, width), of which a file holds the seed alone.

    *Needs and cost:* no statistics; features · width trained numbers per part, twice as many multiplications. No weight can hold it.

    *Reduces to:* the base with the kernel at zero, where training begins.

    *Raises:* ``ModelError`` for a model without blocks.

    *Differences from the paper:* its adapters alone; layers that exist are not replaced. Features are trigonometric.

    Example:
        >>> str(Snnk(features=8))
        'snnk features=8'

    """

    paper: ClassVar[Paper | None] = Paper(
        title="Scalable Neural Network Kernels",
        arxiv="2310.13225",
        year=2023,
        authors="Arijit Sehanobish and Krzysztof Choromanski and Yunfan Zhao and Avinava Dubey and Valerii Likhosherstov",
    )
    rate: ClassVar[float] = 3e-2

    features: int = param(8, "random features of the stream", between=(2, 65536), dial=True)

    @override
    def begin(self, spot: Spot) -> State:
        """A zero kernel, and a seed."""
        return State({"kernel": torch.zeros(width(spot), 2 * (self.features // 2))}, {"seed": torch.tensor(spot.seed)})

    @override
    def adds(self, state: State, stream: torch.Tensor, call: Call) -> torch.Tensor:
        """Features of the stream, times the kernel."""
        wide, features = state["kernel"].shape
        turned = stream @ projection(int(state["seed"]), features // 2, wide).to(stream).T
        return torch.cat([turned.sin(), turned.cos()], -1) @ state["kernel"].T / math.sqrt(features)


@lru_cache(maxsize=256)
def projection(seed: int, features: int, wide: int) -> torch.Tensor:
    """The random matrix (features, wide) of a seed, of about unit length per row."""
    return Seeded(seed, math.sqrt(3 / wide), (features, wide), torch.float32).value()
