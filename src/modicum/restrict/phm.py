"""Parameterized hypercomplex multiplication."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.parametrization import Start, State, Step
from modicum.core.settings import param
from modicum.forms import Chained, Dense
from modicum.forms.chained import Sides, chained
from modicum.numerics.products import kronecker
from modicum.restrict._family import Restriction

if TYPE_CHECKING:
    from modicum.forms import Form


@dataclass(frozen=True, kw_only=True)
class Phm(Restriction):
    """A weight that is a sum of ``n`` Kronecker products, each of a small rule of multiplication and a block: about 1/n of the numbers.

    ``Σ A_i ⊗ S_i`` with A of n × n; with n = 4 and A held at the rules of quaternions it is Hamilton's product.

    *Shapes:* rules (n, n, n), blocks (n, rows / n, columns / n), trained.

    *Needs and cost:* no statistics; n³ + rows · columns / n trained numbers; the weight is made.

    *Reduces to:* a dense weight with ``n=1``, times one number.

    *Raises:* nothing of its own; where n does not divide both sides of a weight, the next smaller number that does serves it.

    *Differences from the paper:* each weight has rules of its own; a weight that exists begins as the nearest such sum.

    Example:
        >>> str(Phm(n=2))
        'phm n=2'

    """

    draws: ClassVar[bool] = True
    paper: ClassVar[Paper | None] = Paper(
        title="Beyond Fully-Connected Layers with Quaternions: Parameterization of Hypercomplex Multiplications with 1/n Parameters",
        arxiv="2102.08597",
        year=2021,
        authors="Aston Zhang and Yi Tay and Shuai Zhang and Alvin Chan and Anh Tuan Luu and Siu Cheung Hui and Jie Fu",
    )

    n: int = param(4, "how many products are added, and the size of their rules", between=(1, 64))

    @override
    def begin(self, start: Start) -> State:
        """The nearest sum, or random rules and blocks whose product is as large as a layer's own weights."""
        rows, columns = start.shape
        n = next(size for size in range(self.n, 0, -1) if rows % size == 0 and columns % size == 0)
        if start.weight is not None:
            rules, blocks = (part.float().contiguous() for part in kronecker(start.weight, n, n, n))
            return State({"rules": rules, "blocks": blocks})
        draw = lambda *shape: torch.randn(shape, generator=start.chance)
        blocks = draw(n, rows // n, columns // n) / math.sqrt(3 * columns)
        return State({"rules": draw(n, n, n) / math.sqrt(n), "blocks": blocks})

    @override
    def weight(self, base: torch.Tensor | None, state: State, step: Step) -> torch.Tensor:
        """All products as one: of each pair of places in a rule, the sum of the blocks."""
        left, centre, sides = self._parts(state)
        return chained(left, centre, centre.new_ones(1, 1), sides)

    def _parts(self, state: State) -> tuple[torch.Tensor, torch.Tensor, Sides]:
        """Rules (n · n, n) and blocks (n, numbers) as a chain has them."""
        rules, blocks = state["rules"], state["blocks"]
        (count, n, _), (_, rows, columns) = rules.shape, blocks.shape
        return rules.reshape(count, n * n).T.contiguous(), blocks.reshape(count, rows * columns), ((n, n), (rows, columns), (1, 1))

    @override
    def form(self, state: State) -> Form:
        """Rules and blocks."""
        left, centre, sides = self._parts(state)
        return Chained(Dense(left), Dense(centre), Dense(torch.ones(1, 1)), sides)
