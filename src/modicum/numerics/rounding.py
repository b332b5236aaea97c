"""Codes decided column by column, on grids fixed before or fitted as columns come."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from modicum.numerics.grid import Grid


class Roundings:
    """Decides codes column by column on several grids, whose rows lie one below the other."""

    def __init__(
        self, grids: Sequence[Grid], fits: Sequence[tuple[torch.Tensor, torch.Tensor | None]], weights: Sequence[torch.Tensor],
        order: torch.Tensor,
    ):  # fmt: skip
        columns, counts = weights[0].shape[1], list(map(len, weights))
        # Columns that share a scale on every grid: mostly a group.
        widths = {grid.width(columns) or columns for grid in grids}
        self.step = widths.pop() if len(widths) == 1 else 1
        firsts = torch.arange(0, columns, self.step)
        # One scale for all rows, or one of each; rows below the last are zeros whatever their scale.
        below = lambda values, rows: nn.functional.pad(values, (0, 0, 0, rows - len(values)), value=1.0) if len(values) > 1 else values
        spread = lambda values, grid, rows: below(values.float(), rows).expand(rows, -1)[:, firsts // (grid.width(columns) or columns)]
        middle = lambda grid, scale: torch.full_like(scale, 2.0 ** (grid.bits - 1), dtype=torch.float32)
        parts = [(grid, scale, middle(grid, scale) if zero is None else zero) for grid, (scale, zero) in zip(grids, fits)]
        self.scales = torch.cat([spread(scale, grid, rows) for (grid, scale, _), rows in zip(parts, counts)]).T.contiguous().numpy()
        self.offsets = torch.cat([spread(offset, grid, rows) for (grid, _, offset), rows in zip(parts, counts)]).T.contiguous().numpy()
        self.top = torch.cat([torch.full((rows,), float(grid.top)) for grid, rows in zip(grids, counts)]).numpy()
        self.codes, self.order = torch.empty(columns, len(self.top), dtype=torch.uint8), order.tolist()
        self._codes = self.codes.numpy()

    def decide(self, k: int, corrected: torch.Tensor) -> torch.Tensor:
        """Values of the ``k``-th column in order, of its corrected ones (rows,)."""
        column = self.order[k]
        group = column // self.step
        value, self._codes[column] = decided(corrected.numpy(), self.scales[group], self.offsets[group], self.top)
        return torch.from_numpy(value)


class Rounding:
    """Decides codes column by column under fixed or refitted groups."""

    def __init__(self, grid: Grid, scale: torch.Tensor, zero: torch.Tensor | None, shape: torch.Size, order: torch.Tensor):
        self.grid, self.width = grid, grid.width(shape[1])
        self.scale, self.zero = scale.clone(), None if zero is None else zero.clone()
        self.order = order.tolist()
        self.codes = torch.empty(shape[1], shape[0], dtype=torch.uint8)
        self.scales = self.scale.float().T.contiguous()
        self.offsets = torch.full_like(self.scales, 2.0 ** (grid.bits - 1)) if zero is None else zero.float().T.contiguous()
        self._codes, self._scales, self._offsets = self.codes.numpy(), self.scales.numpy(), self.offsets.numpy()

    def decide(self, k: int, corrected: torch.Tensor) -> torch.Tensor:
        """Values of the ``k``-th column in order, of its corrected ones (rows,)."""
        column = self.order[k]
        group = column // self.width if self.width else 0
        value, self._codes[column] = decided(corrected.numpy(), self._scales[group], self._offsets[group], self.grid.top)
        return torch.from_numpy(value)

    def refit(self, low: int, high: int, corrected: torch.Tensor, *, dtype: torch.dtype, importance: torch.Tensor, clip: float) -> None:
        """Fit the scales of columns ``[low, high)`` to their ``corrected`` values (columns, rows)."""
        group, one = low // self.width, Grid(self.grid.bits, 0, self.grid.symmetric)
        weights = importance[low:high]
        scale, zero = one.fit(corrected.T, dtype, importance=weights, clip=clip)
        self.scale[:, group], self.scales[group] = scale[:, 0], scale[:, 0].float()
        if self.zero is not None and zero is not None:
            self.zero[:, group], self.offsets[group] = zero[:, 0], zero[:, 0].float()


def decided(corrected: np.ndarray, scale: np.ndarray, offset: np.ndarray, top: np.ndarray | int) -> tuple[np.ndarray, np.ndarray]:
    """A column's values on its grid, and their codes; by numpy, whose calls cost a quarter of torch's where rows are few."""
    placed = corrected / scale
    placed += offset
    np.rint(placed, out=placed)
    np.clip(placed, 0, top, out=placed)
    codes = placed.astype(np.uint8)
    placed -= offset
    placed *= scale
    return placed, codes
