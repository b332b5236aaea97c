"""RigL."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.parametrization import Revision, State, Step
from modicum.core.settings import param
from modicum.restrict._family import Sparsity, moved


@dataclass(frozen=True, kw_only=True)
class Rigl(Sparsity):
    """A sparse weight whose smallest entries give their places to those where the loss falls fastest.

    Every ``every`` steps until the share ``until`` of training, a share of a weight's entries, ``renewed`` falling along a cosine, is dropped by
    magnitude, and as many places are taken that have the largest gradients; new entries begin at zero.

    *Shapes:* values (entries,) at places (entries,) of the matrix, row by row.

    *Needs and cost:* the whole weight's gradient on the steps that renew; entries trained numbers.

    *Reduces to:* training under a fixed mask with ``renewed=0``.

    *Raises:* ``SettingError`` for a share below one weight per row.

    *Differences from the paper:* none known.

    Example:
        >>> Rigl(keep=0.1).watches(Step(100, 1000))
        True

    """

    paper: ClassVar[Paper | None] = Paper(
        title="Rigging the Lottery: Making All Tickets Winners",
        arxiv="1911.11134",
        year=2019,
        authors="Utku Evci and Trevor Gale and Jacob Menick and Pablo Samuel Castro and Erich Elsen",
    )

    renewed: float = param(0.3, "share of a layer's entries that the first renewal moves", between=(0.0, 1.0))
    every: int = param(100, "updates from one renewal to the next", between=(1, 10**9))
    until: float = param(0.75, "share of training after which places stay", between=(0.0, 1.0))

    @override
    def watches(self, step: Step) -> bool:
        """On the steps that renew."""
        return self.renewed > 0 and step.number % self.every == 0 and 0 < step.number < self.until * step.total

    @override
    def revise(self, states: Mapping[str, State], gradients: Mapping[str, torch.Tensor], budget: int, step: Step) -> Revision | None:
        """Places renewed in each weight."""
        if not gradients:
            return None
        share = self.renewed / 2 * (1 + math.cos(math.pi * step.number / max(1.0, self.until * step.total)))
        revised, kept = {}, {}
        for unit, gradient in gradients.items():
            revised[unit], kept[unit] = moved(states[unit], gradient.abs(), int(share * len(states[unit]["values"])))
        return Revision(revised, kept)
