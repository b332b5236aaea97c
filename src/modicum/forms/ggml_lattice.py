"""Types of llama.cpp whose neighbouring columns have sizes that are a point of a list, and a sign each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch

from modicum.core.extras import require_package


@dataclass(frozen=True, eq=False)
class Lattice:
    """``points`` float32 (count, width) of sizes above zero; which of them a width of columns takes is stored as one number.

    A code is the place of a size with its sign among all such in order, so that the levels of codes are ``levels``.
    """

    points: torch.Tensor

    @property
    def width(self) -> int:
        """Columns that one number says the sizes of."""
        return self.points.shape[1]

    @cached_property
    def sizes(self) -> torch.Tensor:
        """Sizes that points are made of, rising (count,)."""
        return self.points.unique()

    def codes(self, index: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
        """Codes uint8 (..., columns) of numbers (..., columns / width) and signs (..., columns)."""
        size = torch.bucketize(self.points, self.sizes)[index].flatten(-2)
        return torch.where(negative.bool(), len(self.sizes) - 1 - size, len(self.sizes) + size).to(torch.uint8)

    def index(self, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Numbers int64 (..., columns / width) and signs (..., columns) of codes, as ``codes`` takes them."""
        negative = codes < len(self.sizes)
        size = torch.where(negative, len(self.sizes) - 1 - codes.long(), codes.long() - len(self.sizes))
        return self._known[(size.unflatten(-1, (-1, self.width)) * self._digits).sum(-1)], negative

    @cached_property
    def _digits(self) -> torch.Tensor:
        return len(self.sizes) ** torch.arange(self.width)

    @cached_property
    def _known(self) -> torch.Tensor:
        """The number of each point by the places of its sizes."""
        known = torch.zeros(len(self.sizes) ** self.width, dtype=torch.int64)
        known[(torch.bucketize(self.points, self.sizes) * self._digits).sum(1)] = torch.arange(len(self.points))
        return known


@cache
def lattice(name: str) -> Lattice:
    """The list of a type, as the package ``gguf`` has it. Raises ``SettingError`` where that is not installed."""
    require_package(f"type={name}", "gguf", "gguf")
    from gguf import quants

    table: Any = getattr(quants, name.upper())
    table.init_grid()
    return Lattice(torch.from_numpy(table.grid.reshape(table.grid.shape[-2:]).copy()).float())
