"""Removing groups of a matrix's columns so that the product with its inputs suffers least."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from modicum.core.errors import ModelError
from modicum.core.finite import finite
from modicum.numerics.threads import single_threaded


class Elimination:
    """Groups of columns in the order of least loss, each removal absorbed by the columns that remain.

    ``weight`` (rows, columns), ``covariance`` (columns, columns) of the inputs; ``groups`` of column numbers, disjoint. With H the damped
    covariance, removing the columns g from the rest costs ``tr(W_g ((H⁻¹)_gg)⁻¹ W_gᵀ)``, after ``W ← W − W_g ((H⁻¹)_gg)⁻¹ (H⁻¹)_g``; the same
    step takes g out of the inverse. All in float64; ``weight`` and ``inverse`` hold the columns left. *Needs and cost:* one inverse, and
    columns³ / 3 multiply-adds to remove all. Raises ``ModelError`` where H is not finite or not positive definite.
    """

    def __init__(self, weight: torch.Tensor, covariance: torch.Tensor, groups: Sequence[Sequence[int]], damping: float):
        self.groups = [torch.tensor(group, dtype=torch.long) for group in groups]
        self._lone = torch.cat(self.groups) if groups and all(len(group) == 1 for group in groups) else None
        with single_threaded():
            self.inverse = torch.cholesky_inverse(factor(damped_covariance(covariance, damping), damping))
        self.weight = weight.double()
        self.left = list(range(len(groups)))
        self._place = torch.arange(len(covariance))  # of each column among those left

    def scores(self) -> torch.Tensor:
        """Loss (groups left,) of removing each group alone."""
        if self._lone is not None:
            columns = self._columns(self.left)
            return self.weight[:, columns].square().sum(0) / self.inverse.diagonal()[columns]
        with single_threaded():
            return torch.stack([self._score(self._columns([group])) for group in self.left])

    def _columns(self, groups: Sequence[int]) -> torch.Tensor:
        return self._place[torch.cat([self.groups[group] for group in groups]) if self._lone is None else self._lone[list(groups)]]

    def _score(self, columns: torch.Tensor) -> torch.Tensor:
        part = self.weight[:, columns]
        return (torch.linalg.solve(self.inverse[columns][:, columns], part.T) * part.T).sum()

    def remove(self, gone: Sequence[int]) -> None:
        """Remove groups together; weight and inverse are brought up to date."""
        columns, lost = self._columns(gone), set(gone)
        stays = torch.ones(len(self.inverse), dtype=torch.bool)
        stays[columns] = False
        across = self.inverse[columns]
        with single_threaded():
            solved = torch.linalg.solve(across[:, columns], across[:, stays])
        self.weight = self.weight[:, stays] - self.weight[:, columns] @ solved
        self.inverse = self.inverse[stays][:, stays] - across[:, stays].T @ solved
        self._place = (stays.cumsum(0) - 1)[self._place]
        self.left = [group for group in self.left if group not in lost]

    def order(self, lot: float) -> list[int]:
        """All groups in the order they go, ``lot`` of those left at a time; the last one never has to."""
        found: list[int] = []
        while len(self.left) > 1:
            count = min(max(1, int(lot * len(self.left))), len(self.left) - 1)
            ranked = self.scores().argsort(stable=True)[:count]
            gone = [self.left[place] for place in ranked.tolist()]
            self.remove(gone)
            found += gone
        return found + self.left


def refitted(weight: torch.Tensor, covariance: torch.Tensor, columns: torch.Tensor, damping: float) -> torch.Tensor:
    """The weight (rows, kept) on the ``columns`` (a long tensor) K that remain which fits the whole one's product with its inputs best.

    ``W_K + W_G H_GK (H_KK)⁻¹`` with G the columns that go and H damped: where all are kept, the weight itself. Raises ``ModelError`` where H is
    not finite or not positive definite.
    """
    damped, goes = damped_covariance(covariance, damping), torch.ones(len(covariance), dtype=torch.bool)
    goes[columns] = False
    missing = weight[:, goes].double() @ damped[goes][:, columns]
    with single_threaded():
        absorbed = torch.cholesky_solve(missing.T, factor(damped[columns][:, columns], damping)).T
    return (weight[:, columns].double() + absorbed).to(weight.dtype)


def damped_covariance(covariance: torch.Tensor, damping: float) -> torch.Tensor:
    """Float64 covariance with ``damping`` times its mean diagonal added; of inputs that never were, that is all that remains."""
    damped = covariance.double()
    mean = float(damped.diagonal().mean())
    return damped + (damping + 1e-12) * (mean if mean > 0 else 1.0) * torch.eye(len(damped), dtype=torch.float64)


def factor(damped: torch.Tensor, damping: float) -> torch.Tensor:
    """Lower Cholesky factor of a damped covariance. Raises ``ModelError`` where it is not finite or not positive definite."""
    if not finite(damped):
        raise ModelError("cut: the covariance of inputs must be finite, holds NaN or Inf. Check the calibration data and the model.")
    lower, failed = torch.linalg.cholesky_ex(damped)
    if failed:
        raise ModelError(
            f"cut: the covariance of inputs must be positive definite, is not with damping={damping:g}. Raise damping, or use more "
            "calibration tokens."
        )
    return lower
