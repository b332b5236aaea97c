"""Model breadcrumbs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from modicum.core.errors import SettingError
from modicum.core.method import Paper
from modicum.core.settings import param
from modicum.merge._family import At, Largest, Survey, counted
from modicum.merge._pipeline import Pipeline, at_least, sizes


@dataclass(frozen=True, kw_only=True)
class Breadcrumbs(Pipeline):
    """Of each model's change the largest entries are dropped as outliers and the small ones as noise; what is between is added.

    In each tensor the share ``gamma`` of the largest entries goes, then the next ``density`` stay. ``W_0 + scale · Σ w_i m_i d_i``.

    *Shapes:* tensors of one shape.

    *Needs and cost:* no data; every tensor is read twice, once to find both sizes.

    *Reduces to:* ``task_arithmetic`` at gamma 0 and density 1.

    *Raises:* ``SettingError`` where gamma and density are more than 1 together.

    *Differences from the paper:* the share that stays is said instead of that which goes below; entries of exactly a size that ends a share are on
    its side. Gamma holds at any density.

    Example:
        >>> base, one = torch.zeros(4), torch.tensor([9.0, 2.0, 1.0, 0.5])
        >>> known = torch.tensor([[9.0, 1.0]])
        >>> Breadcrumbs(density=0.5, gamma=0.25).combine(base, [one], [1.0], At("w", (4,), (1.0,), known=known))
        tensor([0., 2., 1., 0.])

    """

    paper: ClassVar[Paper | None] = Paper(
        title="Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks",
        arxiv="2312.06795",
        year=2023,
        authors="MohammadReza Davari and Eugene Belilovsky",
    )
    averages: ClassVar[bool] = False

    density: float = param(0.85, "share of each tensor's entries that stays", between=(0.0, 1.0))
    gamma: float = param(0.01, "share of the largest entries, which are dropped", between=(0.0, 1.0))
    vote: bool = param(False, "whether models that disagree with an entry's elected sign are left out there")

    @override
    def check(self, weights: Sequence[float]) -> None:
        super().check(weights)
        if self.density + self.gamma > 1 + 1e-9 and self.density < 1:
            raise SettingError(f"breadcrumbs: density and gamma must be at most 1 together, got {self.density:g} and {self.gamma:g}.")

    @property
    @override
    def elects(self) -> bool:
        return self.vote

    @override
    def survey(self, models: int, entries: int) -> Survey:
        top = min(entries, round(self.gamma * entries))
        if not top and self.density == 1:
            return None
        return (yield Largest(sizes, (top, min(entries, top + counted(self.density, entries)))))

    @override
    def trimmed(self, difference: torch.Tensor, model: int, at: At) -> torch.Tensor | None:
        if at.known is None:
            return None
        top, bottom = at.known[model].tolist()
        return at_least(difference, bottom).mul_(difference.abs().lt_(top))
