"""S306, Bonsai: sub-models tried by forwards alone against structured magnitude pruning, a fifth of heads' and channels' weights gone.

Structured magnitude cuts the groups whose consumer's columns have the least squared norm per weight, over all layers at once, as Bonsai cuts. Beside
them stand Bonsai's prior alone, and what gradients know: they need a backward pass, which Bonsai is for doing without.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

import modicum
from common import Claim, Setting
from modicum.core.method import Need
from modicum.core.unit import Site, Stats
from modicum.drop._family import CutDropper, group_size
from pruning import main

CLAIM = Claim(
    id="S306",
    system="Bonsai",
    claim="Sample sub-models by masking heads and MLP units, measure their loss with forward passes only, regress per-module importance, prune worst "
    "and iterate; beats structured magnitude pruning with no backward call or optimizer state.",
    metric="log perplexity of structured magnitude pruning minus Bonsai's at the same share of heads' and channels' weights kept",
    margin=2.0,
    setting=Setting(
        method="bonsai keep=0.8",
        baselines=("magnitude_structured keep=0.8",),
        beside=("bonsai keep=0.8 trials=0", "fisher_masks keep=0.8", "flap keep=0.8"),
        extra_bytes=0.005,
    ),
)


@dataclass(frozen=True, kw_only=True)
class MagnitudeStructured(CutDropper):
    """Cut the groups whose consumer's columns are smallest, over all layers at once."""

    needs = frozenset({Need.NORMS})

    @classmethod
    def key(cls) -> str:
        """Registered by this script alone."""
        return "drop/magnitude_structured"

    def rank(self, weight: torch.Tensor, stats: Stats, groups: Sequence[Sequence[int]]) -> torch.Tensor:
        """Squared norm of a group's columns."""
        columns = weight.square().sum(0)
        return torch.stack([columns[list(group)].sum() for group in groups])

    def survey(self, model, script, batches, pool, sites: Sequence[Site], seed: int):  # type: ignore[no-untyped-def]
        """Scores per weight that goes."""
        found, _ = super().survey(model, script, batches, pool, sites, seed)
        sizes = {site.name: group_size(site) for site in sites}
        return {name: value / sizes[name] for name, value in found.items()}, {}


if __name__ == "__main__":
    modicum.register(MagnitudeStructured)
    main(CLAIM)
