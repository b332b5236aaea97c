"""Truncated singular value decompositions, plain and in the geometry of the inputs."""

from __future__ import annotations

import numpy as np
import scipy.linalg
import torch


def truncated(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Best factors left (rows, rank) and right (rank, columns), float32, of ``matrix`` in the Frobenius norm; right's rows are orthonormal up to
    the matrix's own rank.

    Works on the smaller Gram matrix in float64 and computes only the eigenvectors asked for.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    work = matrix.double().cpu().numpy()
    size = min(matrix.shape)
    rank = min(rank, size)
    gram = work.T @ work if tall else work @ work.T
    vectors = scipy.linalg.eigh(gram, subset_by_index=[size - rank, size - 1])[1][:, ::-1].copy() if rank else np.zeros((size, 0))
    if tall:
        left, right = work @ vectors, vectors.T
    else:
        right = vectors.T @ work
        lengths = np.maximum(np.linalg.norm(right, axis=1, keepdims=True), np.finfo(np.float64).tiny)
        left, right = vectors * lengths.T, right / lengths
    return torch.from_numpy(np.ascontiguousarray(left)).float(), torch.from_numpy(np.ascontiguousarray(right)).float()


def whitened(matrix: torch.Tensor, covariance: torch.Tensor, rank: int, floor: float = 1e-6) -> tuple[torch.Tensor, torch.Tensor]:
    """Best factors of ``matrix`` (rows, columns) in the norm ``tr(E H Eᵀ)`` of ``covariance`` H (columns, columns).

    Projects on the eigenvectors of H scaled by the roots of its eigenvalues, truncates, and maps back; eigenvalues below ``floor``
    times the largest are lifted to it, so that directions the inputs never took stay bounded.
    """
    values, vectors = scipy.linalg.eigh(covariance.double().cpu().numpy())
    roots = torch.from_numpy(np.sqrt(np.maximum(values, max(values[-1], 1e-30) * floor))).float()
    basis = torch.from_numpy(vectors).float()
    left, right = truncated((matrix.float() @ basis) * roots, rank)
    return left, (right / roots) @ basis.T
