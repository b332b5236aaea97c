"""Straggler layers made sparse."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.settings import param
from modicum.merge._family import At, Largest, Merge, Survey, counted
from modicum.merge._pipeline import at_least, sizes


@dataclass(frozen=True, kw_only=True)
class Straggler(Merge):
    """A base and its fine-tuned model interpolated, where in layers that strain the mean only the largest of what was learnt stays.

    ``W_0 + w m (W_1 - W_0)``: in tensors whose names fit the pattern ``layers`` the mask ``m`` keeps the share ``density`` of the largest changes,
    elsewhere all. Which layers those are says ``modicum.merging.sharpness``: those in which the loss rises most where they are moved.

    *Shapes:* tensors of one shape.

    *Needs and cost:* no data; tensors are read twice.

    *Reduces to:* ``wise_ft`` at density 1.

    *Raises:* ``SettingError`` for more than one model.

    *Differences from the paper:* sparse means few changes, so that what is dropped is the base's, not zero.

    Example:
        >>> at = At("w", (2,), (0.5,), known=torch.tensor([[3.0]]))
        >>> Straggler().combine(torch.zeros(2), [torch.tensor([4.0, 1.0])], [0.5], at)
        tensor([2., 0.])

    """

    paper: ClassVar[Paper | None] = Paper(
        title="In Search of the Successful Interpolation: On the Role of Sharpness in CLIP Generalization",
        arxiv="2410.16476",
        year=2024,
        authors="Alireza Abdollahpoorrostam",
    )
    most: ClassVar[int] = 1
    weight: ClassVar[float] = 0.5

    layers: str = param("*", "names of the tensors in which few changes stay, a pattern", metavar="PATTERN")
    density: float = param(0.2, "share of the changes that stay there, the largest", between=(0.0, 1.0))

    @override
    def survey(self, models: int, entries: int) -> Survey:
        if self.density == 1:
            return None
        return (yield Largest(sizes, (counted(self.density, entries),)))

    @override
    def combine(self, base: torch.Tensor, others: Sequence[torch.Tensor], weights: Sequence[float], at: At) -> torch.Tensor:
        if at.known is None or not fnmatch.fnmatchcase(at.name, self.layers):
            share = torch.full_like(base, weights[0])
        else:
            share = torch.ne(at_least(others[0] - base, float(at.known[0, 0])), 0).to(base.dtype) * weights[0]
        return base * (1 - share) + others[0] * share
