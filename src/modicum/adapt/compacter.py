"""Compacter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from typing_extensions import override

from modicum.adapt._family import Adapter
from modicum.core.method import Paper
from modicum.core.parametrization import Start, State, Step
from modicum.core.settings import param
from modicum.forms import Dense, Kronecker, LowRank, Shared, Sum

if TYPE_CHECKING:
    from modicum.forms import Form


@dataclass(frozen=True, kw_only=True)
class Compacter(Adapter):
    """A sum of Kronecker products is added to a weight: coarse factors that all weights share, and thin fine ones of its own.

    ``W + Σᵢ Aᵢ ⊗ (leftᵢ @ rightᵢ)`` over ``parts`` terms, with Aᵢ (parts, parts).

    *Shapes:* left (parts, rows / parts, rank), right (parts, rank, columns / parts); of a weight whose sides the parts do not divide, their greatest
    common divisor takes the place of ``parts``.

    *Needs and cost:* no statistics; rank · (rows + columns) trained numbers per weight, and parts³ that all share.

    *Reduces to:* ``lora`` with ``parts=1``, but for one shared number; PHM layers with ``rank=0``, where fine factors are whole matrices of
    rows · columns / parts numbers in all.

    *Raises:* nothing of its own.

    *Differences from the paper:* the sum is added to a weight that is there; the paper puts it into layers between others.

    Example:
        >>> str(Compacter(parts=2))
        'compacter parts=2 rank=1'

    """

    paper: ClassVar[Paper | None] = Paper(
        title="Compacter: Efficient Low-Rank Hypercomplex Adapter Layers",
        arxiv="2106.04647",
        year=2021,
        authors="Rabeeh Karimi Mahabadi and James Henderson and Sebastian Ruder",
    )
    rate: ClassVar[float] = 3e-2

    parts: int = param(4, "terms of the sum, and sides of the shared factors", between=(1, 256))
    rank: int = param(1, "inner size of the fine factors; 0 for whole ones", between=(0, 65536), dial=True)

    @override
    def common(self, shapes: Mapping[str, tuple[int, int]], chance: torch.Generator, seed: int) -> State | None:
        """Random shared factors, for each number of terms that a weight needs."""
        sizes = sorted({self._terms(shape) for shape in shapes.values()})
        return State({_name(size, at): torch.randn(size, size, generator=chance) / math.sqrt(size) for size in sizes for at in range(size)})

    def _terms(self, shape: tuple[int, int]) -> int:
        return math.gcd(self.parts, *shape)

    @override
    def begin(self, start: Start) -> State:
        """Zero left and random right; whole fine factors begin at zero."""
        size = self._terms(start.shape)
        rows, columns = start.shape[0] // size, start.shape[1] // size
        if not self.rank:
            return State({"fine": torch.zeros(size, rows, columns)}, common=start.common, base=start.base)
        bound, rank = 1 / math.sqrt(columns), min(self.rank, rows, columns)
        right = torch.empty(size, rank, columns).uniform_(-bound, bound, generator=start.chance)
        return State({"left": torch.zeros(size, rows, rank), "right": right}, common=start.common, base=start.base)

    def _fine(self, state: State) -> torch.Tensor:
        return state["left"] @ state["right"] if self.rank else state["fine"]

    @override
    def weight(self, base: torch.Tensor | None, state: State, step: Step) -> torch.Tensor:
        """The base and the sum."""
        assert base is not None
        fine = self._fine(state)
        return base + torch.stack([torch.kron(state[_name(len(fine), at)], each.contiguous()) for at, each in enumerate(fine)]).sum(0)

    @override
    def product(self, base: Form | None, state: State, x: torch.Tensor, step: Step) -> torch.Tensor | None:
        """Fine factors on each part of the inputs, coarse ones over the parts."""
        assert base is not None
        fine = self._fine(state).to(x.dtype)
        coarse = torch.stack([state[_name(len(fine), at)] for at in range(len(fine))]).to(x.dtype)
        parts = x.unflatten(-1, (len(fine), -1))
        return base.product(x) + torch.einsum("...mc,iqc,ipm->...pq", parts, fine, coarse).flatten(-2)

    @override
    def form(self, state: State) -> Form:
        """Kronecker products whose coarse factors lie beside the forms."""
        assert state.base is not None
        size = len(state["left" if self.rank else "fine"])
        coarse = [Shared(f"{self}: {_name(size, at)}", (size, size), torch.float32) for at in range(size)]
        if self.rank:
            fine: list[Form] = [LowRank(left, right) for left, right in zip(state["left"], state["right"])]
        else:
            fine = [Dense(each) for each in state["fine"]]
        return Sum((state.base, Sum(tuple(Kronecker(one, other) for one, other in zip(coarse, fine)))))


def _name(size: int, at: int) -> str:
    return f"coarse {at + 1} of {size}"
