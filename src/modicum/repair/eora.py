"""EoRA: the error's best low-rank part, as the inputs see it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from typing_extensions import override

from modicum.core.method import Need, Paper
from modicum.core.settings import param
from modicum.core.unit import Stats
from modicum.forms import Form, LowRank
from modicum.numerics.svd import truncated, whitened
from modicum.repair._coded import coded
from modicum.repair._family import Repairer

# Bits of factors that are stored as they are.
_PLAIN = 16


@dataclass(frozen=True, kw_only=True)
class Eora(Repairer):
    """Add a low-rank form of the compression error, truncated in the eigenspace of the inputs.

    With ``H = S Sᵀ`` the error is projected to ``E S``, truncated there by SVD and mapped back, which is the best rank-r repair
    of the layer's output on the calibration inputs, whatever the root S.

    *Shapes:* error (rows, columns), covariance (columns, columns). *Needs and cost:* covariance; rows · columns² multiply-adds and one
    eigendecomposition of the smaller side; where there are more rows than columns, a Cholesky factorization. *Reduces to:* plain SVD
    of the error with ``whiten=false``, or where the inputs are white.
    *Raises:* ``SettingError`` where no step before it changed the weight. Weights whose inputs were not seen take plain SVD.

    *Differences from the paper:* no eigendecomposition of the covariance: of few rows the repair is the projection ``U Uᵀ E`` on the leading
    eigenvectors of ``E H Eᵀ``, of many the root is a Cholesky factor; both give the paper's product. With ``factors=8`` (6, 4) the factors are whole
    numbers, in half (a quarter) of the bytes.

    Example:
        >>> import torch
        >>> Eora(rank=2).repair(torch.randn(8, 16), Stats(covariance=torch.eye(16)), torch.float32).rank
        2

    """

    paper = Paper(
        "EoRA: Training-free Compensation for Compressed LLM with Eigenspace Low-Rank Approximation", "2410.21271", 2024,
        "Liu, Shih-Yang and others",
    )  # fmt: skip
    needs = frozenset({Need.COVARIANCE})
    blockwise = True
    menu = ({"rank": 8, "factors": 8},)

    rank: int = param(8, "rank of the repair", between=(1, 1 << 20), dial=True)
    whiten: bool = param(True, "truncate in the eigenspace of the inputs, not of the weights")
    factors: int = param(16, "bits of the factors' numbers: under 16 whole numbers under a scale for each direction", choices=(4, 6, 8, 16))

    def without_data(self) -> Eora:
        """The stand-in for weights whose inputs were not seen."""
        return Eora(rank=self.rank, whiten=False, factors=self.factors)

    @override
    def wanted(self) -> frozenset[Need]:
        return self.needs if self.whiten else frozenset()

    def repair(self, error: torch.Tensor, stats: Stats, dtype: torch.dtype) -> Form:
        """Low-rank form of ``error``."""
        if self.whiten:
            assert stats.moment is not None
            left, right = whitened(error, stats.moment, self.rank, stats.cache)
        else:
            left, right = truncated(error, self.rank)
        if self.factors < _PLAIN:
            return coded(left.float(), right.float(), self.factors, stats.moment if self.whiten else None, dtype)
        scale = (left.double().norm(dim=0).clamp_min(1e-60) / right.double().norm(dim=1).clamp_min(1e-60)).sqrt()
        return LowRank((left / scale).to(dtype), (right * scale[:, None]).to(dtype))
