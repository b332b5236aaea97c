"""WideNet: one set of weights for all depths."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.parametrization import Start, State, Step
from modicum.core.settings import param
from modicum.restrict._family import Restriction, Shapes
from modicum.restrict._shared import deviation, place, pooled, role, weight

if TYPE_CHECKING:
    from modicum.forms import Form


@dataclass(frozen=True, kw_only=True)
class Widenet(Restriction):
    """Layers of the same place in their blocks have one weight over all depths; norms stay each block's own.

    Where blocks have experts, as in the paper, these and what routes to them are shared too: the model is wide instead of deep. ``sets`` sets of
    weights divide the depth into as many parts.

    *Shapes:* pool (1, numbers), trained, which all weights share; nothing of a weight's own.

    *Needs and cost:* no statistics; the numbers of ``sets`` blocks are trained and stored, products are those of the whole model.

    *Reduces to:* dense training with as many sets as blocks.

    *Raises:* nothing of its own.

    *Differences from the paper:* experts are the model's own affair; a weight that exists is not projected, training begins from random numbers.

    Example:
        >>> str(Widenet(sets=2))
        'widenet sets=2'

    """

    draws: ClassVar[bool] = True
    paper: ClassVar[Paper | None] = Paper(
        title="Go Wider Instead of Deeper",
        arxiv="2107.11817",
        year=2021,
        authors="Fuzhao Xue and Ziji Shi and Futao Wei and Yuxuan Lou and Yong Liu and Yang You",
    )

    sets: int = param(1, "sets of weights over the depth", between=(1, 65536), dial=True)

    @override
    def common(self, shapes: Shapes, chance: torch.Generator, seed: int) -> State | None:
        """One run of the pool for each role, shape and set, with a layer's own beginnings."""
        blocks = sorted({role(unit)[1] for unit in shapes})
        runs: dict[tuple[str, tuple[int, int], int], int] = {}
        parts, frozen, total = [], {}, 0
        for unit, shape in sorted(shapes.items()):
            name, block = role(unit)
            key = name, shape, blocks.index(block) * min(self.sets, len(blocks)) // len(blocks)
            if key not in runs:
                runs[key] = total
                total += math.prod(shape)
                bound = deviation(shape[1]) * math.sqrt(3)
                parts.append(torch.empty(1, math.prod(shape)).uniform_(-bound, bound, generator=chance))
            frozen[f"run of {unit}"] = place(0, runs[key], math.prod(shape))
        return State({"pool": torch.cat(parts, 1)}, frozen)

    @override
    def begin(self, start: Start) -> State:
        """Where the weight lies in the pool."""
        assert start.common is not None
        return State({}, {"where": start.common[f"run of {start.unit}"], "shape": torch.tensor(start.shape)}, start.common)

    def _made(self, state: State) -> tuple[torch.Tensor, tuple[int, int], torch.Tensor]:
        rows, columns = state["shape"].tolist()
        return state["where"], (rows, columns), torch.ones(1)

    @override
    def weight(self, base: torch.Tensor | None, state: State, step: Step) -> torch.Tensor:
        """A run of the pool."""
        return weight(state["pool"], *self._made(state))

    @override
    def form(self, state: State) -> Form:
        """A run of what is shared."""
        return pooled(state, f"{self}: pool", *self._made(state))
