"""Gram matrices: sums of outer products, at half the work of a matrix product."""

from __future__ import annotations

import torch
from scipy.linalg.blas import ssyrk

# Columns mirrored at a time.
_TILE = 512


def add_gram(total: torch.Tensor, rows: torch.Tensor) -> None:
    """Add ``rowsᵀ · rows`` to the lower triangle of ``total`` (columns, columns), in place; ``mirror`` makes the rest.

    Both float32; ``rows`` (tokens, columns). On the processor by BLAS' symmetric rank-k update, which torch does not offer, elsewhere whole.
    The bits do not depend on the number of threads.
    """
    if total.device.type != "cpu" or not len(rows):
        total.addmm_(rows.T, rows)
        return
    # BLAS counts by columns: to it, a matrix in rows is the transpose, and the lower triangle the upper.
    ssyrk(1.0, rows.contiguous().numpy().T, beta=1.0, c=total.numpy().T, overwrite_c=1)


def mirror(total: torch.Tensor) -> torch.Tensor:
    """Copy the lower triangle of ``total`` onto the upper, in place; returns it."""
    for low in range(0, len(total), _TILE):
        high = low + _TILE
        total[low:high, high:] = total[high:, low:high].T
        corner = total[low:high, low:high]
        corner.copy_(corner.tril() + corner.tril(-1).T)
    return total
