"""Equal bits whatever the number of threads."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import ThreadpoolController


@functools.cache
def _libraries() -> ThreadpoolController:
    """Linear algebra that is loaded beside torch: scipy's has threads of its own."""
    import scipy.linalg  # noqa: F401

    return ThreadpoolController()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads of torch inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def single_threaded() -> Iterator[None]:
    """One thread inside: factorizations, and sums over a whole tensor, take another order of additions with each number of threads.

    Sums along one axis do not, and products where no sum is much longer than the result is wide (``numerics.gram.add_product``): they are left
    to all threads.
    """
    with threads(1), _libraries().limit(limits=1, user_api="blas"):
        yield


def total(values: torch.Tensor) -> float:
    """Sum of all values."""
    with single_threaded():
        return float(values.sum())
