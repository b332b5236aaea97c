"""Bounds of what a trained net loses on new rows: by the numbers that its pruned layers need in a sketch, and by norms of its weights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch

from modicum.core.errors import DataError

Weights = Sequence[torch.Tensor]


def sketched(mask: torch.Tensor) -> int:
    """Numbers that a sparse matrix (rows, columns) takes in a sketch from both sides: so many products of dense sides are enough to have it back.

    With at most ``j`` entries in a row or column, a side of ``√(j · max(rows, columns))`` holds it up to logarithms; never more than its own size.
    """
    most = max(int(mask.sum(0).max()), int(mask.sum(1).max()), 1)
    return min(mask.numel(), math.ceil(most * max(mask.shape)))


def pruning_bound(weights: Weights, pruned: Weights, rows: int, margin: float, largest: float) -> dict[str, float]:
    """A bound on how much more a pruned feed-forward net with rectifiers errs on new rows than the whole net does within a margin.

    ``weights`` and ``pruned``: matrices (outputs, inputs) of its layers in their order, before and after; ``rows`` that it was trained on,
    ``largest`` the norm of the largest input. Pruning moves outputs by at most ``perturbation = largest · Π |W| · Σ |W - Ŵ| / |W|`` in spectral
    norms (to first order), which the margin has to hold; what is left is a net of ``numbers`` sketched numbers, told to a precision that moves
    outputs by less than the margin, so that ``√(numbers · bits · ln 2 / (2 · rows))`` bounds the rest. After Guha and others, Generalization Bounds
    for Magnitude-Based Pruning via Sparse Matrix Sketching (2305.18789). Raises ``DataError`` where layers do not follow each other.
    """
    _require_chain(weights, pruned)
    norms = [float(torch.linalg.matrix_norm(weight.double(), 2)) for weight in weights]
    moved = [float(torch.linalg.matrix_norm((a - b).double(), 2)) for a, b in zip(weights, pruned)]
    product = math.prod(norms)
    perturbation = largest * product * sum(each / max(norm, 1e-30) for each, norm in zip(moved, norms))
    numbers = sum(sketched(weight != 0) for weight in pruned)
    finest = margin / max(1e-30, len(weights) * largest * product / min(norms))  # by how much one layer may be off
    bits = max(1.0, math.log2(1 + max(float(weight.abs().max()) for weight in pruned) * math.sqrt(max(map(torch.numel, pruned))) / finest))
    return {
        "perturbation": perturbation,
        "numbers": float(numbers),
        "bits": bits,
        "bound": math.sqrt(numbers * bits * math.log(2) / (2 * rows)),
    }


def norm_bounds(weights: Weights, rows: int, margin: float, largest: float) -> dict[str, float]:
    """Bounds of the same by norms of the weights alone, without their constants and logarithms, which only make them larger.

    ``frobenius`` (Neyshabur, Tomioka, Srebro 2015), ``spectral`` with rows' norms (Bartlett, Foster, Telgarsky 2017), ``spectral and frobenius``
    (Neyshabur, Bhojanapalli, Srebro 2018).
    """
    _require_chain(weights, weights)
    scale = largest / (margin * math.sqrt(rows))
    frobenius = [float(weight.double().norm()) for weight in weights]
    spectral = [float(torch.linalg.matrix_norm(weight.double(), 2)) for weight in weights]
    by_rows = [float(weight.double().norm(dim=0).sum()) for weight in weights]
    product = math.prod(spectral)
    width = max(max(weight.shape) for weight in weights)
    return {
        "frobenius": scale * 2 ** (len(weights) - 1) * math.prod(frobenius),
        "spectral": scale * product * sum((side / norm) ** (2 / 3) for side, norm in zip(by_rows, spectral)) ** 1.5,
        "spectral and frobenius": scale
        * len(weights)
        * math.sqrt(width)
        * product
        * math.sqrt(sum((f / s) ** 2 for f, s in zip(frobenius, spectral))),
    }


def _require_chain(weights: Weights, pruned: Weights) -> None:
    shapes = [tuple(weight.shape) for weight in weights]
    if not weights or shapes != [tuple(weight.shape) for weight in pruned] or any(a[0] != b[1] for a, b in itertools.pairwise(shapes)):
        raise DataError(f"layers: must be matrices of which each takes what the one before gives, pruned to the same shapes, are {shapes}.")
