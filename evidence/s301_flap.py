"""S301, FLAP: a global cut by fluctuation with means folded into biases, against structured Wanda, layer by layer and without biases."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

import modicum
from common import Claim, Setting, main
from modicum.core.method import Need
from modicum.core.settings import param
from modicum.core.unit import Stats
from modicum.drop._family import CutDropper

# A fifth of the eight heads is no whole number, so the baseline runs with its heads rounded either way, channels making up the
# difference. FLAP's biases are its own: 4096 numbers, less than a thousandth of the file.
CLAIM = Claim(
    id="S301",
    system="FLAP",
    claim="Score each head and MLP channel by calibration variance times squared weight-column norm, standardise across layers, cut "
    "globally, fold mean activations into biases; perplexity at 20% structured sparsity beats structured Wanda without any retraining.",
    metric="log perplexity of structured Wanda minus FLAP's at the same share of heads' and channels' weights kept",
    margin=2.0,
    setting=Setting(
        method="flap keep=0.8",
        baselines=("wanda_structured keep=0.8 fewer_heads=true", "wanda_structured keep=0.8 fewer_heads=false"),
        seeds=(0, 1, 2, 3, 4, 5, 6, 7),
        extra_bytes=0.002,
    ),
)


@dataclass(frozen=True, kw_only=True)
class WandaStructured(CutDropper):
    """Cut the groups with the least summed product of magnitude and input norm, the same share in every layer."""

    needs = frozenset({Need.NORMS})

    keep: float = param(0.8, "share of each layer's weights kept", between=(0.0, 1.0), dial=True)
    fewer_heads: bool = param(True, "round the heads kept down, not up", dial=True)

    @classmethod
    def key(cls) -> str:
        """Registered by this script alone."""
        return "drop/wanda_structured"

    def rank(self, weight: torch.Tensor, stats: Stats, groups: Sequence[Sequence[int]]) -> torch.Tensor:
        """Sum of |w| times input norm over the group's columns and all rows."""
        columns = weight.abs().sum(0) * stats.norm
        return torch.stack([columns[list(group)].sum() for group in groups])

    def select(self, scores: dict[str, torch.Tensor], sizes: dict[str, int]) -> dict[str, list[int]]:
        """Per layer: whole heads first, then as many channels as the share leaves room for."""
        layers: dict[str, list[str]] = defaultdict(list)
        for site in scores:
            layers[site.partition(":")[0].rpartition(".")[0]].append(site)
        kept = {}
        for sites in layers.values():
            left = self.keep * sum(sizes[site] * len(scores[site]) for site in sites)
            *coarse, fine = sorted(sites, key=lambda site: -sizes[site])
            for site in coarse:
                count = (math.floor if self.fewer_heads else math.ceil)(self.keep * len(scores[site]))
                kept[site] = _best(scores[site], count)
                left -= count * sizes[site]
            kept[fine] = _best(scores[fine], int(left // sizes[fine]))
        return kept


def _best(scores: torch.Tensor, count: int) -> list[int]:
    return sorted(scores.topk(count).indices.tolist())


if __name__ == "__main__":
    modicum.register(WandaStructured)
    main(CLAIM)
