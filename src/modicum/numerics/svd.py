"""Truncated singular value decompositions, plain and in the geometry of the inputs."""

from __future__ import annotations

import torch

from modicum.numerics.threads import single_threaded


def truncated(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Best factors left (rows, rank) and right (rank, columns), float32, of ``matrix`` in the Frobenius norm; right's rows are orthonormal up to
    the matrix's own rank.

    Works on the smaller Gram matrix in float64.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    work = matrix.double()
    vectors = _eigen(work.T @ work if tall else work @ work.T)[1].flip(1)[:, :rank]
    if tall:
        left, right = work @ vectors, vectors.T
    else:
        right = vectors.T @ work
        lengths = right.norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
        left, right = vectors * lengths, right / lengths[:, None]
    return left.float().contiguous(), right.float().contiguous()


def whitened(matrix: torch.Tensor, covariance: torch.Tensor, rank: int, floor: float = 1e-6) -> tuple[torch.Tensor, torch.Tensor]:
    """Best factors of ``matrix`` (rows, columns) in the norm ``tr(E H Eᵀ)`` of ``covariance`` H (columns, columns).

    Projects on the eigenvectors of H scaled by the roots of its eigenvalues, truncates, and maps back; eigenvalues below ``floor``
    times the largest are lifted to it, so that directions the inputs never took stay bounded.
    """
    values, vectors = _eigen(covariance.double())
    roots = values.clamp_min(max(float(values[-1]), 1e-30) * floor).sqrt().float()
    basis = vectors.float()
    left, right = truncated((matrix.float() @ basis) * roots, rank)
    return left, (right / roots) @ basis.T


def _eigen(symmetric: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues (size,), rising, and eigenvectors in columns (size, size)."""
    with single_threaded():
        values, vectors = torch.linalg.eigh(symmetric)
    return values, vectors
