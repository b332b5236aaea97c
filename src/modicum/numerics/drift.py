"""Weights that give on other inputs what a weight gave on its own: least squares on how the inputs drifted."""

from __future__ import annotations

import torch

from modicum.numerics.gram import add_product
from modicum.numerics.solver import Factor, slabs
from modicum.numerics.threads import single_threaded


def towards(weight: torch.Tensor, drift: torch.Tensor, order: torch.Tensor, factor: Factor, share: float) -> torch.Tensor:
    """``W + share · W Δ H⁻¹`` (rows, columns): at 1 what gives on inputs x, in least squares, what ``weight`` W gives on inputs y.

    ``drift`` Δ (columns, columns) is the sum of ``(y - x) xᵀ``, and H the damped covariance of x that ``factor`` is of, its columns in ``order``.
    *Needs and cost:* two products of rows · columns² multiply-adds; beside the result 12 bytes for each weight of a slab of rows.
    """
    aimed, back = weight.clone(), order.argsort()
    for rows in slabs(weight):
        pull = torch.zeros(weight.shape[1], len(weight[rows]))
        add_product(pull, drift, weight[rows].T.contiguous())
        with single_threaded():
            half = torch.linalg.solve_triangular(factor.coupling, pull[order], upper=True, unitriangular=True)
            whole = torch.linalg.solve_triangular(factor.coupling.T, half / factor.curvature[:, None], upper=False, unitriangular=True)
        aimed[rows] += share * whole[back].T
    return aimed
