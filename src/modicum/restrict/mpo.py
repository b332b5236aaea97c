"""Matrix product operators."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.parametrization import Start, State, Step
from modicum.core.settings import param
from modicum.forms import Chained, Dense, Shared
from modicum.forms.chained import Sides, chained
from modicum.numerics.products import bonds, chain, sides
from modicum.restrict._family import Restriction, Shapes
from modicum.restrict._shared import deviation, role

if TYPE_CHECKING:
    from modicum.forms import Form


@dataclass(frozen=True, kw_only=True)
class Mpo(Restriction):
    """A weight as a chain of a large central tensor between two small ones; layers of the same place in their blocks may share the central one.

    A weight that exists begins as the decomposition truncated at ``bond``, where its central tensor is its own; a whole bond (16, for sides that 4
    divides twice) is exact.

    *Shapes:* left (i₁ · j₁, bond), centre (bond, i₂ · j₂ · bond), right (bond, i₃ · j₃), trained; the outer sides i and j are at most 4.

    *Needs and cost:* no statistics; about rows · columns · (bond / 16)² numbers where sides are whole, by blocks divided where the centre is shared.

    *Reduces to:* a dense weight at a whole bond.

    *Raises:* nothing of its own.

    *Differences from the paper:* three tensors; no adapters beside, which ``adapt`` puts on any weight; shared centres begin from random numbers.

    Example:
        >>> str(Mpo(bond=8, shared=True))
        'mpo bond=8 shared=true'

    """

    draws: ClassVar[bool] = True
    paper: ClassVar[Paper | None] = Paper(
        title="Scaling Pre-trained Language Models to Deeper via Parameter-efficient Architecture",
        arxiv="2303.16753",
        year=2023,
        authors="Peiyu Liu and Ze-Feng Gao and Yushuo Chen and Wayne Xin Zhao and Ji-Rong Wen",
    )

    bond: int = param(8, "largest size between two tensors", between=(1, 256), dial=True)
    shared: bool = param(False, "whether layers of the same place in their blocks have one central tensor")

    @override
    def common(self, shapes: Shapes, chance: torch.Generator, seed: int) -> State | None:
        """The central tensors, one for each place in a block and shape."""
        if not self.shared:
            return None
        centres: dict[str, torch.Tensor] = {}
        for unit, shape in sorted(shapes.items()):
            (_, (m, n), _) = parts = sides(shape)
            first, second = bonds(parts, self.bond)
            centres.setdefault(_centre(unit, shape), torch.randn(first, m * n * second, generator=chance) * deviation(shape[1]))
        numbers = {f"centre of {unit}": torch.tensor(list(centres).index(_centre(unit, shape))) for unit, shape in sorted(shapes.items())}
        return State({str(number): centre for number, centre in enumerate(centres.values())}, numbers)

    @override
    def begin(self, start: Start) -> State:
        """The truncated decomposition, or random tensors whose product is as large as a layer's own weights."""
        (i, j), (m, n), (p, q) = parts = sides(start.shape)
        first, second = bonds(parts, self.bond)
        draw = lambda rows, columns: torch.randn(rows, columns, generator=start.chance)
        frozen = {"sides": torch.tensor(parts)}
        left, right = draw(i * j, first) / math.sqrt(first), draw(second, p * q) / math.sqrt(second)
        if start.common is not None:
            return State({"left": left, "right": right}, {**frozen, "number": start.common[f"centre of {start.unit}"]}, start.common)
        if start.weight is None:
            return State({"left": left, "centre": draw(first, m * n * second) * deviation(start.shape[1]), "right": right}, frozen)
        made = dict(zip(("left", "centre", "right"), chain(start.weight, self.bond)))
        return State({name: part.float().contiguous() for name, part in made.items()}, frozen)

    def _parts(self, state: State) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Sides]:
        centre = state[str(int(state["number"]))] if self.shared else state["centre"]
        first, second, third = ((rows, columns) for rows, columns in state["sides"].tolist())
        return state["left"], centre, state["right"], (first, second, third)

    @override
    def weight(self, base: torch.Tensor | None, state: State, step: Step) -> torch.Tensor:
        """The chain."""
        return chained(*self._parts(state))

    @override
    def form(self, state: State) -> Form:
        """Three tensors, the central one of the weight's own or shared."""
        left, centre, right, parts = self._parts(state)
        rows, columns = centre.shape
        name = f"{self}: {int(state['number'])}" if self.shared else ""
        middle = Shared(name, (rows, columns), torch.float32, centre.detach()) if self.shared else Dense(centre)
        return Chained(Dense(left), middle, Dense(right), parts)


def _centre(unit: str, shape: tuple[int, int]) -> str:
    return f"{role(unit)[0]} {shape}"
