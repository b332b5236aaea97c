"""Truncated singular value decompositions, plain and in the geometry of the inputs."""

from __future__ import annotations

import scipy.linalg
import torch

from modicum.core.errors import ModelError
from modicum.core.finite import finite
from modicum.numerics.gram import add_product
from modicum.numerics.threads import single_threaded

# Added to a covariance's diagonal, as a share of (a bound of) its largest eigenvalue: directions that the inputs never took stay bounded.
_FLOOR = 1e-6
_RETRIES = 6
# Columns of a covariance that are made float64 at a time.
_PANEL = 512


def truncated(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Best factors left (rows, rank) and right (rank, columns), float32, of ``matrix`` in the Frobenius norm; right's rows are orthonormal up to
    the matrix's own rank.

    Works on the smaller Gram matrix in float64 and computes only the eigenvectors asked for.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    work = matrix.double()
    vectors = _leading(_gram(work, work) if tall else _gram(work.T, work.T), rank)
    if tall:
        left, right = work @ vectors, vectors.T
    else:
        right = _gram(vectors, work)
        lengths = right.norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
        left, right = vectors * lengths, right / lengths[:, None]
    return left.float().contiguous(), right.float().contiguous()


def whitened(matrix: torch.Tensor, covariance: torch.Tensor, rank: int, cache: dict | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Best factors of ``matrix`` E (rows, columns) in the norm ``tr(E H Eᵀ)`` of the ``covariance`` H (columns, columns).

    Of few rows it is ``U Uᵀ E`` with the leading eigenvectors U of ``E H Eᵀ``: H is multiplied and never decomposed. Of many it goes through
    a root of H: ``E L`` is truncated and mapped back, and the Cholesky factor L, which ``cache`` keeps, is as good a root as any. The
    diagonal of H is raised by a millionth of its largest absolute row sum, which no eigenvalue exceeds. Raises ``ModelError`` where H is not
    finite.
    """
    if not finite(covariance):
        raise ModelError("low rank: the covariance of inputs must be finite, holds NaN or Inf. Check the calibration data and the model.")
    work, cache = matrix.double(), {} if cache is None else cache
    if matrix.shape[0] <= matrix.shape[1]:
        felt = _gram(_felt(work, covariance).T, work.T) + _floor(covariance) * _gram(work.T, work.T)
        vectors = _leading((felt + felt.T).div_(2), rank)
        return vectors.float().contiguous(), _gram(vectors, work).float().contiguous()
    if "root" not in cache:
        cache["root"] = _root(covariance).float()
    root = cache["root"].double()
    left, right = truncated(_gram(work.T, root), rank)
    with single_threaded():
        mapped = torch.linalg.solve_triangular(root, right.double(), upper=False, left=False)
    return left, mapped.float().contiguous()


def _gram(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """``leftᵀ · right`` of float64 (terms, rows) and (terms, columns); the bits do not depend on the number of threads."""
    total = left.new_zeros(left.shape[1], right.shape[1])
    add_product(total, left, right)
    return total


def _felt(matrix: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
    """Float64 ``matrix`` (rows, columns) times the covariance, of which few columns are float64 at a time."""
    panels = (covariance[:, low : low + _PANEL].double() for low in range(0, len(covariance), _PANEL))
    return torch.cat([_gram(matrix.T, panel) for panel in panels], 1)


def _floor(covariance: torch.Tensor) -> float:
    return _FLOOR * max(float(covariance.norm(p=1, dim=1).max()), 1e-30)


def _root(covariance: torch.Tensor) -> torch.Tensor:
    """Lower Cholesky factor in float64 of a covariance, which rounding may have left a little short of semidefinite."""
    floor = _floor(covariance)
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
