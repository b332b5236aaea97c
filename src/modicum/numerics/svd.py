"""Truncated singular value decompositions, plain and in the geometry of the inputs."""

from __future__ import annotations

from dataclasses import dataclass

import scipy.linalg
import torch

from modicum.numerics.threads import single_threaded


def truncated(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Best factors left (rows, rank) and right (rank, columns), float32, of ``matrix`` in the Frobenius norm; right's rows are orthonormal up to
    the matrix's own rank.

    Works on the smaller Gram matrix in float64 and computes only the eigenvectors asked for.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    work = matrix.double()
    vectors = _leading(work.T @ work if tall else work @ work.T, rank)
    if tall:
        left, right = work @ vectors, vectors.T
    else:
        right = vectors.T @ work
        lengths = right.norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
        left, right = vectors * lengths, right / lengths[:, None]
    return left.float().contiguous(), right.float().contiguous()


@dataclass(frozen=True)
class Eigenspace:
    """Eigenvectors of a covariance in columns (size, size), and the roots of its eigenvalues (size,), float32.

    Eigenvalues below a share of the largest are lifted to it, so that directions the inputs never took stay bounded.
    """

    basis: torch.Tensor
    roots: torch.Tensor

    @classmethod
    def of(cls, covariance: torch.Tensor, floor: float = 1e-6) -> Eigenspace:
        """The eigenspace of ``covariance`` (size, size)."""
        with single_threaded():
            values, vectors = torch.linalg.eigh(covariance.double())
        return cls(vectors.float(), values.clamp_min(max(float(values[-1]), 1e-30) * floor).sqrt().float())


def whitened(matrix: torch.Tensor, space: Eigenspace, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Best factors of ``matrix`` (rows, columns) in the norm ``tr(E H Eᵀ)`` of the covariance H (columns, columns) of ``space``.

    Projects on the eigenvectors of H scaled by the roots of its eigenvalues, truncates, and maps back.
    """
    left, right = truncated((matrix.float() @ space.basis) * space.roots, rank)
    return left, (right / space.roots) @ space.basis.T


def _leading(symmetric: torch.Tensor, rank: int) -> torch.Tensor:
    """Eigenvectors (size, rank) of the largest eigenvalues, largest first."""
    size = len(symmetric)
    rank = min(rank, size)
    if not rank:
        return symmetric.new_zeros(size, 0)
    with single_threaded():  # LAPACK by scipy, which can stop at some of them: a quarter of the time
        vectors = scipy.linalg.eigh(symmetric.cpu().numpy(), subset_by_index=[size - rank, size - 1])[1]
    return torch.from_numpy(vectors).to(symmetric).flip(1)
