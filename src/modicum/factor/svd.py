"""SVD: the best low-rank stand-in for a weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from modicum.core.method import Paper
from modicum.core.settings import param
from modicum.factor._family import Factorization
from modicum.forms import Form, LowRank
from modicum.numerics.svd import truncated


@dataclass(frozen=True, kw_only=True)
class Svd(Factorization):
    """Replace a weight by its best approximation of a given rank.

    ``W ≈ U_r S_r V_rᵀ``, stored as two thin factors: fewer numbers while ``rank < rows · columns / (rows + columns)``.

    *Shapes:* weight (rows, columns), factors (rows, rank) and (rank, columns). *Needs and cost:* no data; one eigendecomposition of the
    smaller Gram matrix. *Reduces to:* the original weight at full rank. *Raises:* ``SettingError`` where it comes after a step that left
    no dense weight.

    Example:
        >>> import torch
        >>> Svd(rank=1).factor(torch.ones(3, 2)).dense().round()
        tensor([[1., 1.],
                [1., 1.],
                [1., 1.]])

    """

    paper = Paper(
        "Exploiting Linear Structure Within Convolutional Networks for Efficient Evaluation", "1404.0736", 2014,
        "Denton, Emily and Zaremba, Wojciech and Bruna, Joan and LeCun, Yann and Fergus, Rob",
    )  # fmt: skip
    menu = ({"keep": 0.25}, {"keep": 0.5})

    keep: float = param(0.5, "stored numbers as a share of the weight's", between=(0.0, 2.0))
    rank: int | None = param(None, "rank; overrides keep", between=(1, 1 << 20))

    def factor(self, weight: torch.Tensor) -> Form:
        """Factors of ``weight`` (rows, columns) in its dtype."""
        rows, columns = weight.shape
        rank = self.rank or max(1, int(self.keep * rows * columns / (rows + columns)))
        left, right = truncated(weight.float(), min(rank, rows, columns))
        scale = left.double().norm(dim=0).clamp_min(1e-60).sqrt()  # balanced factors lose least to a narrow dtype
        return LowRank((left / scale).to(weight.dtype), (right * scale[:, None]).to(weight.dtype))
