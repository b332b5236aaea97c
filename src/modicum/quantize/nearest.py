"""Nearest: every weight to its nearest level."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from modicum.core.settings import param
from modicum.core.unit import Stats
from modicum.forms import Form
from modicum.numerics.grid import Grid
from modicum.quantize._family import Quantizer


@dataclass(frozen=True, kw_only=True)
class Nearest(Quantizer):
    """Round every weight to the nearest level of its group's range.

    The baseline of the family: ``q = round(w / s) + z`` with scale s and zero point z that cover the group's range exactly.

    *Shapes:* weight (rows, columns); one scale per row and group of columns. *Needs and cost:* no data; two passes over the weight,
    one more per share tried with ``clip``. *Reduces to:* the original weights where they lie on the grid; with
    float32 scales every entry is within half a level. *Raises:* ``SettingError`` where it comes after a step that left no dense weight.

    Example:
        >>> import torch
        >>> from modicum.numerics.grid import Grid
        >>> form = Nearest(bits=4, group=0).quantize(torch.tensor([[0.0, 1.0, 15.0]]), Grid(4, 0), Stats(), torch.float32)
        >>> form.dense()
        tensor([[ 0.,  1., 15.]])

    """

    clip: float = param(1.0, "least share of the range tried in search of the least squared error; 1: none", between=(0.1, 1.0))

    def quantize(self, weight: torch.Tensor, grid: Grid, stats: Stats, dtype: torch.dtype) -> Form:
        """Round to the grid fitted to the range."""
        return grid.encode(weight, *grid.fit(weight, dtype, clip=self.clip))
