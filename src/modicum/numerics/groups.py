"""Removing groups of a matrix's columns so that the product with its inputs suffers least."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from modicum.core.errors import ModelError
from modicum.core.finite import finite
from modicum.numerics.gram import add_product
from modicum.numerics.solver import accurate
from modicum.numerics.threads import single_threaded


class Elimination:
    """Groups of columns in the order of least loss, each removal absorbed by the columns that remain.

    ``weight`` (rows, columns), ``covariance`` (columns, columns) of the inputs; ``groups`` of column numbers, disjoint. With H the damped
    covariance, removing the columns g from the rest costs ``tr(W_g ((H⁻¹)_gg)⁻¹ W_gᵀ)``, after ``W ← W − W_g ((H⁻¹)_gg)⁻¹ (H⁻¹)_g``; the same
    step takes g out of the inverse P. Of that only what is looked at is brought up to date, the squares of the groups left and the rows of those
    that go: ``P − Vᵀ V``, where V has a row for each column gone. *Needs and cost:* one inverse, and columns³ / 6 multiply-adds to remove all;
    in float32 where that leaves two digits of every column, otherwise in float64. Raises ``ModelError`` where H is not finite or not positive
    definite.
    """

    def __init__(self, weight: torch.Tensor, covariance: torch.Tensor, groups: Sequence[Sequence[int]], damping: float):
        self.groups, self.left = [torch.tensor(group, dtype=torch.long) for group in groups], list(range(len(groups)))
        self._lone = torch.cat(self.groups) if groups and all(len(group) == 1 for group in groups) else None
        self.damping = damping
        self._rows = _inverse(covariance, damping)  # of columns gone V, of those left P
        self._weight = weight.to(self._rows.dtype, copy=True)
        self._diagonal = self._rows.diagonal().clone()
        self._squares = {} if self._lone is not None else {place: self._rows[own][:, own] for place, own in enumerate(self.groups)}
        # Columns gone stand first: which column stands where, and where each column stands.
        self._gone, self._held, self._place = 0, torch.arange(len(covariance)), torch.arange(len(covariance))

    @property
    def weight(self) -> torch.Tensor:
        """The columns left, in their order, as they have absorbed the others."""
        return self._weight[:, self._place[self._held[self._gone :].sort().values]]

    def scores(self) -> torch.Tensor:
        """Loss (groups left,) of removing each group alone, in float64: squares of the largest weights are beyond float32."""
        if self._lone is not None:
            places = self._place[self._lone[self.left]]
            return self._weight[:, places].double().square().sum(0) / self._diagonal[places]
        with single_threaded():
            return torch.stack([self._score(group) for group in self.left])

    def _score(self, group: int) -> torch.Tensor:
        part = self._weight[:, self._place[self.groups[group]]].double()
        return (torch.linalg.solve(self._squares[group].double(), part.T) * part.T).sum()

    def remove(self, gone: Sequence[int]) -> None:
        """Remove groups together; the others absorb them."""
        columns, lost = torch.cat([self.groups[group] for group in gone]), set(gone)
        self._to_the_front(columns)
        low, self._gone = self._gone, self._gone + len(columns)
        rows, own = self._rows[low : self._gone, low:], slice(low, self._gone)
        add_product(rows, self._rows[:low, own], self._rows[:low, low:], -1)
        with single_threaded():
            lower = factor(rows[:, : len(columns)], self.damping)
            rows.copy_(torch.linalg.solve_triangular(lower, rows, upper=False))
            taken = torch.linalg.solve_triangular(lower, self._weight[:, own].T, upper=False)
        self._weight[:, self._gone :] -= taken.T @ rows[:, len(columns) :]
        self._diagonal[low:] -= rows.square().sum(0)
        self.left = [group for group in self.left if group not in lost]
        for group in self.left if self._lone is None else ():
            part = rows[:, self._place[self.groups[group]] - low]
            self._squares[group] -= part.T @ part

    def _to_the_front(self, columns: torch.Tensor) -> None:
        """Exchange ``columns`` for those that stand first among the ones left."""
        there = self._place[columns]
        places = torch.cat([torch.arange(self._gone, self._gone + len(columns)), there]).unique()
        source = torch.cat([there, places[~torch.isin(places, there)]])
        for values in (self._rows, self._rows.T, self._weight.T, self._diagonal, self._held):
            values[places] = values[source]
        self._place[self._held[places]] = places

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
    goes = torch.ones(len(covariance), dtype=torch.bool)
    goes[columns] = False
    lower = _lower(covariance[columns][:, columns], damping, _ridge(covariance, damping))
    missing = lower.new_zeros(len(columns), len(weight))
    add_product(missing, covariance[goes][:, columns].to(lower.dtype), weight[:, goes].T.to(lower.dtype))
    with single_threaded():
        absorbed = torch.cholesky_solve(missing, lower).T
    return (weight[:, columns].to(lower.dtype) + absorbed).to(weight.dtype)


def damped_covariance(covariance: torch.Tensor, damping: float) -> torch.Tensor:
    """Float64 covariance with ``damping`` times its mean diagonal added; of inputs that never were, that is all that remains."""
    return _raised(covariance, _ridge(covariance, damping), torch.float64)


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


def _ridge(covariance: torch.Tensor, damping: float) -> float:
    """What ``damping`` adds to the diagonal."""
    mean = float(covariance.diagonal().double().mean())
    return (damping + 1e-12) * (mean if mean > 0 else 1.0)


def _raised(covariance: torch.Tensor, ridge: float, dtype: torch.dtype) -> torch.Tensor:
    raised = covariance.to(dtype, copy=True)
    raised.diagonal().add_(ridge)
    return raised


def _lower(covariance: torch.Tensor, damping: float, ridge: float) -> torch.Tensor:
    """Lower Cholesky factor with ``ridge`` added to the diagonal, in float32 where it is given so and that leaves two digits."""
    with single_threaded():
        if covariance.dtype == torch.float32:
            raised = _raised(covariance, ridge, torch.float32)
            lower, failed = torch.linalg.cholesky_ex(raised)
            if not failed and accurate(lower.diagonal().square() / raised.diagonal()):
                return lower
        return factor(_raised(covariance, ridge, torch.float64), damping)


def _inverse(covariance: torch.Tensor, damping: float) -> torch.Tensor:
    """Inverse of a damped covariance, by the same rule: a column's share that no other explains is one over both diagonals."""
    ridge = _ridge(covariance, damping)
    lower = _lower(covariance, damping, ridge)
    with single_threaded():
        inverse = torch.cholesky_inverse(lower)
        if lower.dtype == torch.float32 and not accurate(1 / (inverse.diagonal() * (covariance.diagonal() + ridge))):
            inverse = torch.cholesky_inverse(factor(_raised(covariance, ridge, torch.float64), damping))
    return inverse
