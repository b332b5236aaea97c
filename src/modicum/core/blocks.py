"""A covariance of which only the blocks along its diagonal were measured."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Blocks:
    """Covariances (size, size) of neighbouring columns, block after block; what columns of two blocks have in common counts as nothing.

    What a wide unit's inputs can be told by where the whole (columns, columns) does not fit. It has a matrix's length, diagonal and product.
    """

    parts: tuple[torch.Tensor, ...]

    @classmethod
    def zeros(cls, columns: int, width: int, device: torch.device | str = "cpu") -> Blocks:
        """Blocks of ``width`` columns, the last of what is left."""
        sizes = [min(width, columns - low) for low in range(0, columns, width)]
        return cls(tuple(torch.zeros(size, size, device=device) for size in sizes))

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __rmatmul__(self, matrix: torch.Tensor) -> torch.Tensor:
        return torch.cat([matrix[..., columns] @ part for columns, part in spans(self)], -1)

    def diagonal(self) -> torch.Tensor:
        """Its diagonal (columns,)."""
        return torch.cat([part.diagonal() for part in self.parts])

    def kept(self, columns: torch.Tensor) -> Blocks:
        """The blocks of those ``columns`` (a long tensor, rising) alone."""
        picks = [columns[(columns >= where.start) & (columns < where.stop)] - where.start for where, _ in spans(self)]
        return Blocks(tuple(part[pick][:, pick] for part, pick in zip(self.parts, picks) if len(pick)))

    def aligned(self, step: int) -> Blocks:
        """The same with no group of ``step`` columns in two blocks: one that would be is a block of its own."""
        if step <= 1 or all(where.start % step == 0 for where, _ in spans(self)):
            return self
        ends = {0, len(self), *(end for where, _ in spans(self) for end in (where.start // step * step, -(-where.start // step) * step))}
        edges = sorted(end for end in ends if end <= len(self))
        return Blocks(tuple(self._corner(low, high) for low, high in itertools.pairwise(edges)))

    def _corner(self, low: int, high: int) -> torch.Tensor:
        """The square of columns ``[low, high)``, zero between blocks."""
        cut = [
            part[max(low - c.start, 0) : high - c.start, max(low - c.start, 0) : high - c.start]
            for c, part in spans(self)
            if c.start < high
        ]
        cut = [part for part in cut if len(part)]
        return cut[0] if len(cut) == 1 else torch.block_diag(*cut)


def spans(moment: torch.Tensor | Blocks) -> Iterator[tuple[slice, torch.Tensor]]:
    """Columns and square of each block of a covariance; a whole one is a single block."""
    low = 0
    for part in moment.parts if isinstance(moment, Blocks) else (moment,):
        yield slice(low, low + len(part)), part
        low += len(part)
