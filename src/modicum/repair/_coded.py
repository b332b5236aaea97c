"""A product of two thin matrices in few bits: each number a whole one, under a scale for each direction."""

from __future__ import annotations

import torch

from modicum.core.blocks import Blocks
from modicum.forms.product import Product
from modicum.numerics.descent import descend
from modicum.numerics.grid import Grid
from modicum.numerics.threads import single_threaded

# How far ranges are clipped at the most; of the left factor's Gram matrix what is added to its diagonal; sweeps over the right factor's codes.
_CLIP, _RIDGE, _SWEEPS, _DAMPING = 0.6, 1e-6, 2, 0.01


def coded(left: torch.Tensor, right: torch.Tensor, bits: int, moment: torch.Tensor | Blocks | None, dtype: torch.dtype) -> Product:
    """``left @ right`` of float32 factors (rows, rank) and (rank, columns) on symmetric grids of ``bits``.

    Columns of the left factor are scaled to have -1 as their largest, and share a scale; the right one is solved anew for the left as it was
    rounded, has a scale for each direction, and its codes are refined under the covariance ``moment`` of inputs, where that was seen.
    """
    whole, most = left.double() @ right.double(), left.gather(0, left.abs().argmax(0, keepdim=True))
    left = torch.where(most == 0, 0.0, left / -most)
    grid = Grid(bits, -1, symmetric=True)
    thin = grid.encode(left, *grid.fit(left, dtype, clip=_CLIP))
    right = _solved(thin.dense().double(), whole)
    grid = Grid(bits, 0, symmetric=True)
    importance = None if moment is None else moment.diagonal()
    flat = grid.encode(right, *grid.fit(right, dtype, importance=importance, clip=_CLIP))
    if moment is not None:
        flat = descend([right], [grid], [flat], moment, _DAMPING, _SWEEPS)[0][0]
    return Product((thin, flat))


def _solved(thin: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """The right factor that comes nearest to ``whole`` (rows, columns) behind a left one (rows, rank), whatever the inputs; float32."""
    square = thin.T @ thin
    square.diagonal().add_(_RIDGE * square.diagonal().mean().clamp_min(_RIDGE))
    with single_threaded():
        return torch.linalg.solve(square, thin.T @ whole).float()
