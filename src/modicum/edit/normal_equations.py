"""The one linear solve beneath every editor that locates keys and writes values to them."""

from __future__ import annotations

import torch

from modicum.core.errors import ModelError
from modicum.numerics.gram import add_gram, add_product, mirror

# Of the largest eigenvalue: directions below it hold no key, but what sums in float32 leave.
_NONE = 1e-6


class NormalEquations:
    """Sums over keys and wanted changes of one layer, of a size that does not depend on how many there are.

    The change ``D`` (rows, columns) of a weight is to give ``D k = v`` for every key ``k`` (columns,) and wanted change ``v`` (rows,), and little
    for whatever is protected, a matrix ``C`` (columns, columns): it is least in ``Σ |D k - v|² + tr(D C Dᵀ)``, so ``D = (Σ v kᵀ) (Σ k kᵀ + C)⁻¹``.
    """

    def __init__(self, rows: int, columns: int):
        self.count = 0
        self._gram = torch.zeros(columns, columns)
        self._cross = torch.zeros(rows, columns)

    def add(self, keys: torch.Tensor, values: torch.Tensor, weight: float = 1.0) -> None:
        """Add keys (count, columns) and wanted changes (count, rows), each counted ``weight`` times; float32.

        *Needs and cost:* count · columns · (columns / 2 + rows) multiply-adds; no memory beyond what is given.
        """
        root = weight**0.5
        add_gram(self._gram, keys * root)
        add_product(self._cross, values * root, keys * root)
        self.count += len(keys)

    @property
    def gram(self) -> torch.Tensor:
        """``Σ k kᵀ`` (columns, columns)."""
        return mirror(self._gram.clone())

    def solve(self, protected: torch.Tensor, *, within: torch.Tensor | None = None, exact: bool = False) -> torch.Tensor:
        """The change (rows, columns), float32, computed in float64.

        ``protected`` (columns, columns) is ``C``, positive definite. ``within`` (columns, columns), a projection ``P``, lets only what lies in
        it change: keys are projected first, so ``D = (Σ v kᵀ) P (P Σ k kᵀ P + C)⁻¹``. ``exact`` asks for ``D k = v`` for every key, with the
        least ``tr(D C Dᵀ)`` of all that give it; of keys that depend on one another, the nearest.

        *Needs and cost:* columns³ multiply-adds, whatever was added. Raises ``ModelError`` where nothing finite comes out.
        """
        gram, cross = self.gram.double(), self._cross.double()
        if within is not None:
            inside = within.double()
            gram, cross = inside @ gram @ inside, cross @ inside
        if exact:
            change = _exact(gram, cross, protected.double())
        else:
            change = _solved(gram + protected.double(), cross.T).T
        if not bool(torch.isfinite(change).all()):
            raise ModelError("edit: the normal equations must have a finite solution, have none. Protect more, with a larger ridge.")
        return change.float().contiguous()


def _solved(matrix: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info):
        raise ModelError("edit: what is protected must be positive definite, is not. Protect more, with a larger ridge.")
    return torch.cholesky_solve(right, factor)


def _exact(gram: torch.Tensor, cross: torch.Tensor, protected: torch.Tensor) -> torch.Tensor:
    """With ``C = L Lᵀ`` and whitened keys ``L⁻¹ k`` the least change is ``(Σ v k̂ᵀ) (Σ k̂ k̂ᵀ)⁺ L⁻¹``."""
    factor, info = torch.linalg.cholesky_ex(protected)
    if int(info):
        raise ModelError("edit: what is protected must be positive definite, is not. Protect more, with a larger ridge.")
    half = torch.linalg.solve_triangular(factor, gram, upper=False)
    white = torch.linalg.solve_triangular(factor, half.T, upper=False)
    values, vectors = torch.linalg.eigh((white + white.T) / 2)
    kept = values > _NONE * values.max().clamp(min=1e-300)
    vectors, values = vectors[:, kept], values[kept]
    wanted = torch.linalg.solve_triangular(factor, cross.T, upper=False).T
    return torch.linalg.solve_triangular(factor.T, ((wanted @ vectors / values) @ vectors.T).T, upper=True).T


def null_space(covariance: torch.Tensor, share: float) -> torch.Tensor:
    """The projection (columns, columns) onto what ``covariance`` leaves nearly empty, its smallest directions, of ``share`` of its trace at most."""
    values, vectors = torch.linalg.eigh(covariance.double())
    empty = vectors[:, values.clamp(min=0).cumsum(0) <= share * values.clamp(min=0).sum()]
    return (empty @ empty.T).float()
