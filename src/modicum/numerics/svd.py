"""Truncated singular value decompositions, plain and in the geometry of the inputs."""

from __future__ import annotations

import scipy.linalg
import torch

from modicum.core.blocks import Blocks, spans
from modicum.core.errors import ModelError
from modicum.core.finite import finite
from modicum.numerics.gram import add_product
from modicum.numerics.threads import single_threaded

# Added to a covariance's diagonal, as a share of (a bound of) its largest eigenvalue: directions that the inputs never took stay bounded.
_FLOOR = 1e-6
_RETRIES = 6
# Columns of a covariance, rows of a matrix and terms of a sum that are made float64 at a time.
_PANEL, _TERMS = 512, 3072
# Of a Krylov space: directions beyond the rank, its blocks, and the smaller side up to which all singular values are computed instead.
_BEYOND, _KRYLOV, _WHOLE = 8, 6, 256


def truncated(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Best factors left (rows, rank) and right (rank, columns), float32, of ``matrix`` in the Frobenius norm; right's rows are orthonormal up to
    the matrix's own rank.

    Works on the smaller Gram matrix in float64 and computes only the eigenvectors asked for; zeros have factors of zeros.
    """
    if not bool(matrix.any()):
        rank = min(rank, *matrix.shape)
        return matrix.new_zeros(len(matrix), rank, dtype=torch.float32), matrix.new_zeros(rank, matrix.shape[1], dtype=torch.float32)
    if matrix.shape[0] > matrix.shape[1]:
        vectors = _leading(_product(matrix, matrix), rank)
        return _rows(matrix, vectors), vectors.T.float().contiguous()
    vectors = _leading(_product(matrix.T, matrix.T), rank)
    right = _product(vectors, matrix)
    lengths = right.norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
    return (vectors * lengths).float().contiguous(), (right / lengths[:, None]).float().contiguous()


def principal(matrix: torch.Tensor, rank: int, chance: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The largest singular values s (rank,) of ``matrix`` with their vectors u (rows, rank) and v (rank, columns), float32.

    Exact for small matrices; of large ones found in a block Krylov space that begins at random, which passes over the matrix a dozen times where
    a decomposition takes as many products as it has columns. Equal bits with any number of threads.
    """
    with single_threaded():
        if min(matrix.shape) <= max(_WHOLE, 4 * rank):
            u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
        else:
            block = matrix @ torch.randn(matrix.shape[1], rank + _BEYOND, generator=chance).to(matrix)
            space = [torch.linalg.qr(block).Q]
            for _ in range(_KRYLOV - 1):
                block = matrix @ (matrix.T @ space[-1])
                space.append(torch.linalg.qr(block).Q)
            basis = torch.linalg.qr(torch.cat(space, 1)).Q
            u, s, v = torch.linalg.svd((basis.T @ matrix).double(), full_matrices=False)
            u = basis.double() @ u
    return u[:, :rank].float(), s[:rank].float(), v[:rank].float()


def whitened(
    matrix: torch.Tensor, covariance: torch.Tensor | Blocks, rank: int, cache: dict | None = None
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Best factors of ``matrix`` E (rows, columns) in the norm ``tr(E H Eᵀ)`` of the ``covariance`` H (columns, columns), whole or in blocks.

    Of few rows it is ``U Uᵀ E`` with the leading eigenvectors U of ``E H Eᵀ``: H is multiplied and never decomposed. Of many it goes through
    a root of H, and the Cholesky factor L, which ``cache`` keeps, is as good a root as any: ``E L`` is truncated, through its Gram matrix
    ``Lᵀ Eᵀ E L``, and mapped back. The diagonal of H is raised by a millionth of its largest absolute row sum, which no eigenvalue exceeds.
    Raises ``ModelError`` where H is not finite.
    """
    if not all(finite(square) for _, square in spans(covariance)):
        raise ModelError("low rank: the covariance of inputs must be finite, holds NaN or Inf. Check the calibration data and the model.")
    floor, cache = _floor(covariance), {} if cache is None else cache
    if matrix.shape[0] <= matrix.shape[1]:
        felt = sum(_felt(matrix[:, columns], square, floor) for columns, square in spans(covariance))
        vectors = _leading((felt + felt.T).div_(2), rank)  # type: ignore[union-attr]
        return vectors.float().contiguous(), _product(vectors, matrix).float().contiguous()
    if "root" not in cache:
        cache["root"] = [_root(square, floor).float() for _, square in spans(covariance)]
    gram = _product(matrix, matrix)
    for (columns, _), root in zip(spans(covariance), cache["root"]):
        gram[columns] = _product(root, gram[columns])
        gram[:, columns] = _product(gram[:, columns].T.contiguous(), root)
    vectors = _leading((gram + gram.T).div_(2), rank)
    parts = [(vectors[columns], root.double()) for (columns, _), root in zip(spans(covariance), cache["root"])]
    into = torch.cat([_product(root.T, part) for part, root in parts])
    with single_threaded():
        back = [torch.linalg.solve_triangular(root, part.T, upper=False, left=False) for part, root in parts]
    return _rows(matrix, into), torch.cat(back, 1).float().contiguous()


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """``leftᵀ · right`` of (terms, rows) and (terms, columns) in float64, of which few terms are made so at a time; equal bits with any number of
    threads.
    """
    total = torch.zeros(left.shape[1], right.shape[1], dtype=torch.float64, device=left.device)
    for low in range(0, len(left), _TERMS):
        add_product(total, left[low : low + _TERMS].double(), right[low : low + _TERMS].double())
    return total


def _rows(matrix: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """``matrix · vectors`` in float32, of products in float64; few rows at a time."""
    return torch.cat([_product(rows.T, vectors).float() for rows in matrix.split(_PANEL)])


def _felt(matrix: torch.Tensor, covariance: torch.Tensor, floor: float) -> torch.Tensor:
    """``E (H + floor) Eᵀ`` (rows, rows), panel by panel of the covariance's columns."""
    found = floor * _product(matrix.T, matrix.T)
    for low in range(0, len(covariance), _PANEL):
        panel = _product(matrix.T, covariance[:, low : low + _PANEL])
        add_product(found, panel.T, matrix[:, low : low + _PANEL].T.double())
    return found


def _floor(covariance: torch.Tensor | Blocks) -> float:
    return _FLOOR * max(1e-30, *(float(square.norm(p=1, dim=1).max()) for _, square in spans(covariance)))


def _root(covariance: torch.Tensor, floor: float) -> torch.Tensor:
    """Lower Cholesky factor in float64 of a covariance, which rounding may have left a little short of semidefinite."""
    for retry in range(_RETRIES):
        work = covariance.double()
        work.diagonal().add_(floor * 10**retry)
        with single_threaded():
            factor, failed = torch.linalg.cholesky_ex(work)
        if not failed:
            return factor
    raise ModelError("low rank: the covariance of inputs must be semidefinite, is not. Use more calibration tokens.")


def _leading(symmetric: torch.Tensor, rank: int) -> torch.Tensor:
    """Eigenvectors (size, rank) of the largest eigenvalues, largest first."""
    size = len(symmetric)
    rank = min(rank, size)
    if not rank:
        return symmetric.new_zeros(size, 0)
    with single_threaded():  # LAPACK by scipy, which can stop at some of them: a quarter of the time
        vectors = scipy.linalg.eigh(symmetric.cpu().numpy(), subset_by_index=[size - rank, size - 1])[1]
    return torch.from_numpy(vectors).to(symmetric).flip(1)
