"""Dynamic sparse learning."""

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
from modicum.restrict._family import Sparsity, highest


@dataclass(frozen=True, kw_only=True)
class Dsl(Sparsity):
    """A fixed number of entries moves between the weights of a model: the smallest of all go, and places of the largest gradients come.

    Every ``every`` steps until the share ``until`` of training the share ``renewed`` of all entries, falling along a cosine, is dropped by magnitude
    over all weights together, each scaled by its weight's own mean, and as many places are taken over all by their gradients.

    *Shapes:* values (entries,) at places (entries,) of the matrix; how many each weight has changes, their sum does not.

    *Needs and cost:* the whole weights' gradients on the steps that renew; never more trained numbers than the budget.

    *Reduces to:* training under a fixed mask with ``renewed=0``.

    *Raises:* ``SettingError`` for a share below one weight per row.

    *Differences from the paper:* written for any model, where the paper's weights are embeddings of users and items.

    Example:
        >>> str(Dsl(keep=0.2))
        'dsl keep=0.2'

    """

    paper: ClassVar[Paper | None] = Paper(
        title="Dynamic Sparse Learning: A Novel Paradigm for Efficient Recommendation",
        arxiv="2402.02855",
        year=2024,
        authors="Shuyao Wang and Yongduo Sui and Jiancan Wu and Zhi Zheng and Hui Xiong",
    )

    layers: str = param("uniform", "how the share is divided over layers at first", choices=("uniform", "erk"))
    renewed: float = param(0.3, "share of all entries that the first renewal moves", between=(0.0, 1.0))
    every: int = param(100, "updates from one renewal to the next", between=(1, 10**9))
    until: float = param(0.75, "share of training after which places stay", between=(0.0, 1.0))

    @property
    @override
    def shifts(self) -> bool:
        """From one weight to another."""
        return True

    @override
    def watches(self, step: Step) -> bool:
        """On the steps that renew."""
        return self.renewed > 0 and step.number % self.every == 0 and 0 < step.number < self.until * step.total

    @override
    def revise(self, states: Mapping[str, State], gradients: Mapping[str, torch.Tensor], budget: int, step: Step) -> Revision | None:
        """Places renewed over all weights."""
        if not gradients:
            return None
        share = self.renewed / 2 * (1 + math.cos(math.pi * step.number / max(1.0, self.until * step.total)))
        values = {unit: states[unit]["values"].detach() for unit in gradients}
        total = sum(map(len, values.values()))
        moved = min(int(share * total), sum(gradient.numel() for gradient in gradients.values()) - total)
        sizes = {unit: value.abs() / value.abs().mean().clamp_min(1e-30) for unit, value in values.items()}
        stays = highest(sizes, {"all": total - moved}, together=True)
        free = {unit: gradients[unit].reshape(-1).abs().index_fill(0, states[unit]["places"], -1.0) for unit in values}
        grown = highest(free, {"all": moved}, together=True)
        revised, kept = {}, {}
        for unit, value in values.items():
            places = torch.cat([states[unit]["places"][stays[unit]], grown[unit]])
            order = places.argsort()
            fresh = torch.cat([value[stays[unit]], value.new_zeros(len(grown[unit]))])[order]
            revised[unit] = states[unit].having({"values": fresh}, {"places": places[order]})
            kept[unit] = {"values": torch.cat([stays[unit], torch.full((len(grown[unit]),), -1)])[order]}
        return Revision(revised, kept)
