"""LISA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.parametrization import Step
from modicum.core.schedule import Schedule
from modicum.core.settings import param


@dataclass(frozen=True, kw_only=True)
class Lisa(Schedule):
    """A few blocks drawn by chance train for some updates while the others rest, then others are drawn; what lies outside of all always trains.

    ``full | lisa layers=2``: gradients and moments are those of two blocks, and in the end all have moved.

    *Shapes:* whatever trains.

    *Needs and cost:* no statistics; gradients and an optimizer's moments of ``layers`` blocks at a time.

    *Reduces to:* training without it where ``layers`` is the number of blocks.

    *Raises:* nothing of its own.

    *Differences from the paper:* blocks are drawn with equal chances, not by norms; moments of a block that rests are let go.

    Example:
        >>> sorted(Lisa(layers=1).active({"a": "", "b": "h.0", "c": "h.1"}, Step(0, 100), seed=0))
        ['a', 'b']

    """

    paper: ClassVar[Paper | None] = Paper(
        title="LISA: Layerwise Importance Sampling for Memory-Efficient Large Language Model Fine-Tuning",
        arxiv="2403.17919",
        year=2024,
        authors="Rui Pan and Xiang Liu and Shizhe Diao and Renjie Pi and Jipeng Zhang and Chi Han and Tong Zhang",
    )

    layers: int = param(2, "blocks that train at a time", between=(1, 10**6), dial=True)
    every: int = param(20, "updates until others are drawn", between=(1, 10**9))

    @override
    def active(self, units: Mapping[str, str], step: Step, seed: int) -> frozenset[str]:
        """Blocks drawn by the seed and the turn."""
        blocks = [block for block in dict.fromkeys(units.values()) if block]
        chance = torch.Generator().manual_seed((seed * 1_000_003 + step.number // self.every) % 2**63)
        chosen = {blocks[at] for at in torch.randperm(len(blocks), generator=chance)[: self.layers].tolist()} | {""}
        return frozenset(name for name, block in units.items() if block in chosen)
