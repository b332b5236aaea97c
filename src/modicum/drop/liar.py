"""LIAR: whatever a criterion removes, the columns that remain interpolate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from typing_extensions import override

from modicum.core.method import Change, Need, Paper
from modicum.core.settings import param
from modicum.core.unit import Site
from modicum.data.splits import Batch
from modicum.drop._family import SiteCutter, cut_sites
from modicum.models.model import Model
from modicum.numerics.groups import refitted
from modicum.sweep import Script
from modicum.sweep.coupling import coupled_cuts
from modicum.sweep.spill import SpillPool


@dataclass(frozen=True, kw_only=True)
class Liar(SiteCutter):
    """Cut the groups a criterion thinks least of, and fold what the inputs that remain tell of the lost ones into the weights.

    Lost inputs are interpolated linearly from those kept, ``x_lost ≈ T x_kept`` with ``T = H_lk (H_kk)⁻¹``, so the consumer's weight becomes
    ``W_k + W_l T``. The criterion is not looked at: ``magnitude`` sums ``w²`` over a group's columns of the consumer, ``energy`` those times
    the inputs' squares.

    *Shapes:* consumer's weight (rows, columns), covariance (columns, columns), groups of columns. *Needs and cost:* the covariance of the
    consumer's inputs; one factorization per cut. *Reduces to:* the original model at ``keep=1``; without ``interpolate`` to plain removal; ``ziplm``
    chooses groups by what remains after the same step. *Raises:* ``ModelError`` where no coupled cut is found.

    *Differences from the paper:* groups are chosen once, by one of two criteria; ``keep`` counts the groups of each cut.

    Example:
        >>> import torch
        >>> covariance = torch.tensor([[2.0, 2.0], [2.0, 2.0]])
        >>> Liar(damping=0.0).refit(torch.tensor([[1.0, 3.0]]), covariance, torch.tensor([1]))
        tensor([[4.]])

    """

    paper = Paper("Reconstruct the Pruned Model without Any Retraining", "2407.13331", 2024, "Ma, Pingjie and others")
    needs = frozenset({Need.COVARIANCE})

    keep: float = param(0.75, "share of each cut's groups kept", between=(0.0, 1.0), dial=True)
    criterion: str = param("energy", "what a group counts: its weights, or its weights times its inputs", choices=("energy", "magnitude"))
    interpolate: bool = param(True, "fold what remains can tell of the lost inputs into the weights")
    damping: float = param(0.01, "share of the covariance's mean diagonal added to its diagonal", between=(0.0, 10.0))

    @override
    def order(self, weight: torch.Tensor, covariance: torch.Tensor, groups: Sequence[Sequence[int]]) -> list[int]:
        """Groups in the order they go."""
        columns = weight.square().sum(0) * (covariance.diagonal() if self.criterion == "energy" else 1.0)
        return torch.stack([columns[list(group)].sum() for group in groups]).argsort(stable=True).tolist()

    @override
    def refit(self, weight: torch.Tensor, covariance: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """The consumer's weight on the columns that remain, with what they tell of the others."""
        return refitted(weight, covariance, columns, self.damping) if self.interpolate else weight[:, columns]

    @override
    def reshape(self, model: Model, script: Script, batches: Sequence[Batch], pool: SpillPool, seed: int = 0) -> Change:
        """Cut every coupled cut to the same share."""
        sites = self._required(coupled_cuts(model, script, batches[0]), model)
        wanted: Mapping[str, tuple[Site, SiteCutter, list[int] | None]] = {site.name: (site, self, None) for site in sites}
        return cut_sites(model, script, batches, pool, wanted, seed=seed)
