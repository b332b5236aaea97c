"""The nearest matrix made of small ones: a sum of Kronecker products, a chain of three."""

from __future__ import annotations

import torch

Sides = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
# How large the sides of a chain's outer tensors are at most.
_OUTER = 4


def kronecker(weight: torch.Tensor, rows: int, columns: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of ``count`` Kronecker products nearest to a weight: coarse factors (count, rows, columns), and fine ones (count, ...).

    Van Loan and Pitsianis 1993: blocks of the weight as rows of a matrix, whose truncated decomposition it is. Exact from the number of entries of
    the smaller factor on. Computed in float64.
    """
    high, wide = weight.shape[0] // rows, weight.shape[1] // columns
    blocks = weight.double().reshape(rows, high, columns, wide).permute(0, 2, 1, 3).reshape(rows * columns, high * wide)
    left, right = balanced(blocks, count)
    found = left.shape[1]
    return left.T.reshape(found, rows, columns), right.reshape(found, high, wide)


def sides(shape: tuple[int, int]) -> Sides:
    """Sides of the three tensors of a chain: the outer ones the largest numbers up to 4 that divide."""
    (i, p), (j, q) = (_divisors(side) for side in shape)
    return (i, j), (shape[0] // (i * p), shape[1] // (j * q)), (p, q)


def bonds(parts: Sides, most: int) -> tuple[int, int]:
    """Sizes between the three tensors, ``most`` or what is exact where that is less."""
    (i, j), (m, n), (p, q) = parts
    return min(most, i * j, m * n * p * q), min(most, p * q, i * j * m * n)


def chain(weight: torch.Tensor, most: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Left (i · j, a), centre (a, m · n · b) and right (b, p · q) of a weight, by two truncated decompositions in float64; exact at whole bonds."""
    parts = sides((weight.shape[0], weight.shape[1]))
    (i, j), (m, n), (p, q) = parts
    first, second = bonds(parts, most)
    whole = weight.double().reshape(i, m, p, j, n, q).permute(0, 3, 1, 4, 2, 5)
    left, rest = balanced(whole.reshape(i * j, -1), first)
    centre, right = balanced(rest.reshape(first * m * n, -1), second)
    return left, centre.reshape(first, -1), right


def _divisors(side: int) -> tuple[int, int]:
    """Two factors of a side, each as large as 4 allows."""
    first = next(size for size in range(_OUTER, 0, -1) if side % size == 0)
    return first, next(size for size in range(_OUTER, 0, -1) if side // first % size == 0)


def balanced(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two factors of a matrix, of a rank; each has the root of the singular values."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * v[:rank]
