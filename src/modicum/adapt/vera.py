"""VeRA."""

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
from modicum.forms import Diagonal, Product, Seeded, Sum

if TYPE_CHECKING:
    from modicum.forms import Form


@dataclass(frozen=True, kw_only=True)
class Vera(Adapter):
    """Two random matrices that all layers share, and two trained vectors per layer that scale them.

    ``W + diag(rows) · left · diag(inner) · right``: left and right are drawn once from a seed, and a file holds the seed alone.

    *Shapes:* rows (rows,), inner (rank,); of left (most rows, rank) and right (rank, most columns) each weight takes the corner that it needs.

    *Needs and cost:* no statistics; rows + rank trained numbers, rank · (rows + columns) multiplications per token.

    *Reduces to:* the base with rows at zero, where training begins.

    *Raises:* nothing of its own.

    *Differences from the paper:* the shared matrices are uniform numbers from a counter, the same in every version of every library.

    Example:
        >>> Vera(rank=64).initial
        0.1

    """

    paper: ClassVar[Paper | None] = Paper(
        title="VeRA: Vector-based Random Matrix Adaptation",
        arxiv="2310.11454",
        year=2023,
        authors="Dawid J. Kopiczko and Tijmen Blankevoort and Yuki M. Asano",
    )
    rate: ClassVar[float] = 1e-1

    rank: int = param(256, "inner size of the shared matrices", between=(1, 65536), dial=True)
    initial: float = param(0.1, "what the inner vector begins with", between=(1e-8, 1e3))

    @override
    def common(self, shapes: Mapping[str, tuple[int, int]], chance: torch.Generator, seed: int) -> State | None:
        """The two matrices, as large as the largest weight needs, and what they are drawn from again."""
        rows, columns = max(rows for rows, _ in shapes.values()), max(columns for _, columns in shapes.values())
        left, right = self._left(seed, rows), self._right(seed, columns, columns)
        return State({}, {"left": left.value(), "right": right.value(), "seed": torch.tensor(seed), "width": torch.tensor(columns)})

    def _left(self, seed: int, rows: int) -> Seeded:
        return Seeded(seed, math.sqrt(3 / self.rank), (rows, self.rank), torch.float32)

    def _right(self, seed: int, columns: int, width: int) -> Seeded:
        return Seeded(seed + 1, math.sqrt(3 / width), (self.rank, columns), torch.float32, width)

    @override
    def begin(self, start: Start) -> State:
        """Rows at zero, the inner vector constant."""
        return State(
            {"rows": torch.zeros(start.shape[0]), "inner": torch.full((self.rank,), self.initial)},
            {"columns": torch.tensor(start.shape[1])},
            start.common,
            start.base,
        )

    def _factors(self, state: State) -> tuple[torch.Tensor, torch.Tensor]:
        return state["left"][: len(state["rows"])] * state["inner"], state["right"][:, : int(state["columns"])]

    @override
    def weight(self, base: torch.Tensor | None, state: State, step: Step) -> torch.Tensor:
        """The base and the scaled product."""
        assert base is not None
        left, right = self._factors(state)
        return base + (left @ right) * state["rows"][:, None]

    @override
    def product(self, base: Form | None, state: State, x: torch.Tensor, step: Step) -> torch.Tensor | None:
        """Through the inner size."""
        assert base is not None
        left, right = self._factors(state)
        return base.product(x) + ((x @ right.to(x.dtype).T) @ left.to(x.dtype).T) * state["rows"].to(x.dtype)

    @override
    def form(self, state: State) -> Form:
        """Two seeds and two vectors."""
        assert state.base is not None
        seed = int(state["seed"])
        left = Diagonal(self._left(seed, len(state["rows"])), columns=state["inner"])
        right = self._right(seed, int(state["columns"]), int(state["width"]))
        return Sum((state.base, Diagonal(Product((left, right)), rows=state["rows"])))
