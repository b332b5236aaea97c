"""ZipLM: heads and channels go one lot at a time, and the weights that remain absorb what is lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from modicum.core.method import Change, Need, Paper
from modicum.core.settings import param
from modicum.core.unit import Site
from modicum.data.splits import Batch
from modicum.drop._family import SiteCutter, cut_sites
from modicum.models.model import Model
from modicum.numerics.groups import Elimination, refitted
from modicum.sweep import Script
from modicum.sweep.coupling import coupled_cuts
from modicum.sweep.spill import SpillPool


@dataclass(frozen=True, kw_only=True)
class Ziplm(SiteCutter):
    """Cut the groups whose loss the remaining columns of the consumer can absorb best, and let them absorb it.

    A group's score is ``tr(W_g ((H⁻¹)_gg)⁻¹ W_gᵀ)``, what the block's output loses after the optimal update of the columns that remain; the
    lowest go, the inverse is updated, and the scores are taken again. What remains is the least-squares fit to the original output.

    *Shapes:* consumer's weight (rows, columns), covariance (columns, columns), groups of columns. *Needs and cost:* the covariance of the
    consumer's inputs; one inverse and columns³ / 3 multiply-adds per cut. *Reduces to:* the original model at ``keep=1``. *Raises:* ``ModelError``
    where no coupled cut is found.

    *Differences from the paper:* groups go in lots of at most ``lot`` of those left before scores are taken again; the trade against time is
    not made here but by the allocator, among all options of all sites; no fine-tuning.

    Example:
        >>> str(Ziplm(keep=0.5))
        'ziplm keep=0.5'

    """

    paper = Paper("ZipLM: Inference-Aware Structured Pruning of Language Models", "2302.04089", 2023, "Kurtic, Eldar and others")
    needs = frozenset({Need.COVARIANCE})
    menu = ({"keep": 0.875}, {"keep": 0.75}, {"keep": 0.5})

    keep: float = param(0.75, "share of each cut's groups kept", between=(0.0, 1.0), dial=True)
    damping: float = param(0.01, "share of the covariance's mean diagonal added to its diagonal", between=(0.0, 10.0))
    lot: float = param(0.05, "share of the groups left that go before scores are taken again", between=(0.0, 1.0))

    def order(self, weight: torch.Tensor, covariance: torch.Tensor, groups: Sequence[Sequence[int]]) -> list[int]:
        """Groups in the order they go."""
        return Elimination(weight, covariance, groups, self.damping).order(self.lot)

    def refit(self, weight: torch.Tensor, covariance: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """The least-squares fit on the remaining columns."""
        return refitted(weight, covariance, columns, self.damping)

    def reshape(self, model: Model, script: Script, batches: Sequence[Batch], pool: SpillPool, seed: int = 0) -> Change:
        """Cut every coupled cut to the same share."""
        sites = self._required(coupled_cuts(model, script, batches[0]), model)
        wanted: Mapping[str, tuple[Site, SiteCutter, list[int] | None]] = {site.name: (site, self, None) for site in sites}
        return cut_sites(model, script, batches, pool, wanted, seed=seed)
