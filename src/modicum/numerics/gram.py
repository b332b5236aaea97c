"""Gram matrices: sums of outer products, at little more than half the work of a matrix product."""

from __future__ import annotations

from contextlib import nullcontext

import torch

from modicum.numerics.threads import threads

# Columns of the smallest squares, on the diagonal, of which half is wasted; and what the others' sides are multiples of.
_LEAF, _ALIGNED = 128, 32
# Rows that are mirrored at a time.
_PANEL = 384
# Sums of so many terms are never divided among threads (measured on processors with AVX-512; divided from 1,024 on).
_SHORT = 768
# Results of fewer rows, or of columns that are no multiple of this, are made by one thread.
_NARROW, _LANE = 32, 8


def add_gram(total: torch.Tensor, rows: torch.Tensor, sign: int = 1) -> None:
    """Add ``sign · rowsᵀ · rows`` to the lower triangle of ``total`` (columns, columns), in place; ``mirror`` makes the rest.

    Both float32; ``rows`` (tokens, columns). The triangle is halved until it is small: what lies below the halves is a product, as square as can
    be. BLAS' own symmetric update, which only scipy reaches, is a little faster alone and three times slower between torch's products: its
    threads and torch's wait for each other. The bits do not depend on the number of threads.
    """
    if len(total) <= _LEAF:
        add_product(total, rows, rows, sign)
        return
    middle = len(total) // 2 // _ALIGNED * _ALIGNED
    add_gram(total[:middle, :middle], rows[:, :middle], sign)
    add_gram(total[middle:, middle:], rows[:, middle:], sign)
    add_product(total[middle:, :middle], rows[:, middle:], rows[:, :middle], sign)


def add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor, sign: int = 1) -> None:
    """Add ``sign · leftᵀ · right`` of rows (tokens, columns) to ``total``, in place; the bits do not depend on the number of threads.

    MKL divides sums among threads that are much longer than the result is wide; so they are made in pieces that are not. And it takes other kernels
    at the edges of what each thread has of a few rows, or of columns that do not fill its lanes; so those are left to one.
    """
    most = max(_SHORT, 4 * min(total.shape))
    with threads(1) if len(total) < _NARROW or total.shape[1] % _LANE else nullcontext():
        for low in range(0, len(left), most):
            total.addmm_(left[low : low + most].T, right[low : low + most], alpha=sign)


def mirror(total: torch.Tensor) -> torch.Tensor:
    """Copy the lower triangle of ``total`` onto the upper, in place; returns it."""
    for low in range(0, len(total), _PANEL):
        high = low + _PANEL
        total[low:high, high:] = total[high:, low:high].contiguous().T.contiguous()  # a fifth of the time of one copy across rows
        corner = total[low:high, low:high]
        corner.copy_(corner.tril() + corner.tril(-1).T)
    return total
