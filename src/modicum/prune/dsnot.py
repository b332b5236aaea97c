"""DSnoT: a mask is mended by exchanging weights, row by row, without gradients or new values."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from modicum.core.method import Need, Paper
from modicum.core.settings import param
from modicum.core.unit import Stats
from modicum.prune._family import Pruner
from modicum.prune.magnitude import Magnitude

# Variance of an input that never moves, as a share of its mean square.
_STILL = 1e-8


@dataclass(frozen=True, kw_only=True)
class Dsnot(Pruner):
    """Exchange weights in the mask of ``wanda`` or of magnitudes per row until each row has nearly the original mean output.

    A mask leaves each row an expected error ``ε = Σ w_k E[x_k]`` over what is removed. One step grows the removed weight with the largest
    ``sign(ε) w_k E[x_k] / Var[x_k]`` and removes, among the kept ones whose removal takes from ``|ε|``, the one with the least ``|w_k| ‖x_k‖``.
    A row is done where no exchange makes its error smaller, or after a share ``exchanges`` of its columns; its number of weights stays the
    same, in each group of a pattern too.

    *Shapes:* weight (rows, columns), moments of the inputs (columns,). *Needs and cost:* means and variances of the inputs; a pass over the rows
    still at work for each exchange. *Reduces to:* its start where ``exchanges=0``, or all inputs have mean zero. *Raises:*
    ``SettingError`` for a malformed pattern. Weights whose inputs were not seen take ``magnitude`` per row.

    *Differences from the paper:* an exchange must make the error smaller, instead of the error being smaller than a threshold; the most
    exchanges, 50 in the paper's rows of 4,096 columns, go with the columns, for in narrow rows as many would replace most of the mask.

    Example:
        >>> import torch
        >>> stats = Stats(count=1, total=torch.ones(3), square=torch.tensor([9.0, 16.0, 1.5]))
        >>> Dsnot(keep=2 / 3).solve(torch.tensor([[2.0, -0.5, 1.0]]), stats)[1]
        tensor([[ True, False,  True]])

    """

    paper = Paper("Dynamic Sparse No Training: Training-Free Fine-tuning for Sparse LLMs", "2310.08915", 2023, "Zhang, Yuxin and others")
    needs = frozenset({Need.NORMS, Need.MEANS, Need.VARIANCES})
    scope = "row"

    start: str = param("wanda", "whose mask is mended", choices=("wanda", "magnitude"))
    exchanges: float = param(0.0125, "most exchanges in a row, as a share of its columns", between=(0.0, 1.0))

    def without_data(self) -> Magnitude:
        """The stand-in for weights whose inputs were not seen."""
        return Magnitude(keep=self.keep, pattern=self.pattern, per_row=True)

    def solve(self, weight: torch.Tensor, stats: Stats) -> tuple[torch.Tensor, torch.Tensor]:
        """The weight as it is, and the mended mask."""
        assert stats.square is not None
        size = weight.abs() * stats.norm
        mask = self.mask(size if self.start == "wanda" else weight.abs(), "row")
        gives = weight * stats.mean  # what an entry adds to its row's mean output
        worth = gives / stats.variance.clamp_min(_STILL * stats.square.amax().clamp_min(1e-30) / max(stats.count, 1))
        error = (gives * ~mask).sum(1)
        active = torch.arange(len(weight))
        for _ in range(math.ceil(self.exchanges * weight.shape[1])):
            if not len(active):
                break
            active = self._exchange(active, mask, error, gives, worth, size)
        return weight, mask

    def _exchange(
        self, rows: torch.Tensor, mask: torch.Tensor, error: torch.Tensor, gives: torch.Tensor, worth: torch.Tensor, size: torch.Tensor
    ) -> torch.Tensor:
        """One exchange in each of ``rows`` of the mask that makes its error smaller; the rows where one did."""
        kept, sign = mask[rows], error[rows].sign()[:, None]
        grown = (sign * worth[rows]).masked_fill(kept, -torch.inf).max(1)
        allowed = kept & (sign * gives[rows] < 0) & self._same_group(grown.indices, kept.shape[1])
        removed = size[rows].masked_fill(~allowed, torch.inf).min(1)
        pick = lambda at: gives[rows].gather(1, at[:, None])[:, 0]
        after = error[rows] - pick(grown.indices) + pick(removed.indices)
        better = grown.values.isfinite() & removed.values.isfinite() & (after.abs() < error[rows].abs())
        rows, place = rows[better], lambda found: found.indices[better]
        mask[rows, place(grown)], mask[rows, place(removed)] = True, False
        error[rows] = after[better]
        return rows

    def _same_group(self, places: torch.Tensor, columns: int) -> torch.Tensor:
        """Which columns (rows, columns) may be removed for what is grown at ``places``: all, or those of its group of the pattern."""
        if self.pattern is None:
            return torch.ones(len(places), 1, dtype=torch.bool)
        of = self.n_of_m()[1]
        return torch.arange(columns) // of == (places // of)[:, None]
