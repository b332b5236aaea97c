"""FLAP: groups whose inputs hardly fluctuate go, and their mean moves into the bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from modicum.core.method import Need, Paper
from modicum.core.settings import param
from modicum.core.unit import Stats
from modicum.drop._family import CutDropper


@dataclass(frozen=True, kw_only=True)
class Flap(CutDropper):
    """Cut heads and feed-forward channels whose input variance times squared column norm is least, across all layers at once.

    The score of column j is ``Var(x_j) · ‖W_:j‖²``, standardised over the columns of its site so that layers compare, averaged over a group (heads:
    of its squares), and cut at one global threshold; the removed columns' mean output goes into the consumer's bias.

    *Shapes:* consumer's weight (rows, columns), scores (groups,). *Needs and cost:* means and variances; one survey. *Reduces to:* the
    original model at ``keep=1``; without ``bias`` to plain removal. *Raises:* ``ModelError`` where no coupled cut is found.

    *Differences from the paper:* ``keep`` counts the weights of the cuts, heads and channels weighed by their sizes; every site keeps at
    least one group.

    Example:
        >>> import torch
        >>> stats = Stats(count=2, total=torch.tensor([2.0, 2.0]), square=torch.tensor([2.0, 10.0]))
        >>> Flap().rank(torch.ones(3, 2), stats, [(0,), (1,)])
        tensor([-1.,  1.])

    """

    paper = Paper("Fluctuation-based Adaptive Structured Pruning for Large Language Models", "2312.11983", 2023, "An, Yongqi and others")
    needs = frozenset({Need.MEANS, Need.VARIANCES})

    bias: bool = param(True, "fold the removed columns' mean output into the bias")

    def rank(self, weight: torch.Tensor, stats: Stats, groups: Sequence[Sequence[int]]) -> torch.Tensor:
        """Mean fluctuation of each group's columns, in standard deviations from the site's mean.

        Standardised before it is averaged: sums over the few heads of a layer, standardised, would spread as widely as single channels do,
        and heads be cut for it. Heads' columns are squared first, as the authors' code does and the paper does not say.
        """
        columns = stats.variance * weight.square().sum(0)
        if any(len(group) > 1 for group in groups):
            columns = columns.square()
        standard = (columns - columns.mean()) / columns.std(unbiased=False).clamp_min(1e-30)
        return torch.stack([standard[list(group)].mean() for group in groups])

    def compensate(self, weight: torch.Tensor, stats: Stats, gone: torch.Tensor) -> torch.Tensor | None:
        """Mean output of the removed columns."""
        return weight[:, gone] @ stats.mean[gone] if self.bias else None
