"""Gram matrices: sums of outer products, at little more than half the work of a matrix product."""

from __future__ import annotations

import torch

# Columns of a panel: narrower ones waste less above the diagonal, wider ones multiply faster.
_PANEL = 384


def add_gram(total: torch.Tensor, rows: torch.Tensor) -> None:
    """Add ``rowsᵀ · rows`` to the lower triangle of ``total`` (columns, columns), in place; ``mirror`` makes the rest.

    Both float32; ``rows`` (tokens, columns). Panels end at the diagonal. BLAS' own symmetric update, which only scipy reaches, is a quarter
    faster alone and three times slower between torch's products: its threads and torch's wait for each other. The bits do not
    depend on the number of threads.
    """
    for low in range(0, len(total), _PANEL):
        high = min(low + _PANEL, len(total))
        total[low:high, :high].addmm_(rows[:, low:high].T, rows[:, :high])


def mirror(total: torch.Tensor) -> torch.Tensor:
    """Copy the lower triangle of ``total`` onto the upper, in place; returns it."""
    for low in range(0, len(total), _PANEL):
        high = low + _PANEL
        total[low:high, high:] = total[high:, low:high].T
        corner = total[low:high, low:high]
        corner.copy_(corner.tril() + corner.tril(-1).T)
    return total
