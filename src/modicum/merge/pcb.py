"""PCB-Merging."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.settings import param
from modicum.merge._family import At, Largest, Merge, Survey, counted


@dataclass(frozen=True, kw_only=True)
class Pcb(Merge):
    """Entries of all changes compete: each has a score by its size within its model and by whether the others agree, and weighs as much.

    With ``a`` the size of a change ``d_i``, drawn to 0 to 1 over the model, the score is ``exp(n a²) · tanh(d_i Σ d_j)``. The share ``keep`` of the
    largest scores is drawn to 0 to 1 too, and ``W_0 + scale · Σ s_i d_i / Σ s_i``; sizes are cut at the share ``clip``.

    *Shapes:* tensors of one shape.
    *Needs and cost:* no data; the models are read five times: for the sizes, for the scores, and to merge.
    *Reduces to:* nothing simpler: what has the least score weighs nothing.

    *Raises:* ``SettingError`` for weights that are no shares.

    *Differences from the paper:* a model's weight multiplies its scores.

    Example:
        >>> known = (torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([[7.0, 0.0], [7.0, 0.0]]))
        >>> at = At("w", (2,), (1.0, 1.0), known=known)
        >>> Pcb().combine(torch.zeros(2), [torch.tensor([2.0, 0.0]), torch.tensor([2.0, 2.0])], [1.0, 1.0], at)
        tensor([2., 2.])

    """

    paper: ClassVar[Paper | None] = Paper(
        title="Parameter Competition Balancing for Model Merging", arxiv="2410.02396", year=2024,
        authors="Guodong Du and Junlin Lee and Jing Li and Runhua Jiang and Yifei Guo and Shuyang Yu and Hanting Liu and Sim Kuan Goh and "
        "Ho-Kin Tang and Daojing He and Min Zhang",
    )  # fmt: skip
    known_gaps: ClassVar[dict[str, str]] = {"one model": "the entry of the least score weighs nothing, and the largest are cut"}
    shares: ClassVar[bool] = True

    keep: float = param(0.1, "share of each model's entries that counts", between=(0.0, 1.0))
    scale: float = param(1.0, "what the merged difference is multiplied by", between=(-1e6, 1e6))
    clip: float = param(1e-4, "share of the largest and of the smallest sizes that are cut", between=(0.0, 0.5))

    @property
    @override
    def scope(self) -> str:
        return "model"

    @override
    def survey(self, models: int, entries: int) -> Survey:
        cut = int(self.clip * entries)
        ends = yield Largest(lambda base, others, at: torch.stack([(other - base).abs() for other in others]), (cut + 1, entries - cut))
        least = min(entries, counted(self.keep, entries) + 1)
        return ends, (yield Largest(lambda base, others, at: torch.stack(self._scores(base, others, ends)), (1, least)))

    def _scores(self, base: torch.Tensor, others: Sequence[torch.Tensor], ends: torch.Tensor) -> list[torch.Tensor]:
        differences = [other - base for other in others]
        total, found = torch.stack(differences).sum(0), []
        for difference, (top, bottom) in zip(differences, ends.tolist()):
            size = (difference.abs().clamp(bottom, top) - bottom) / ((top - bottom) or 1.0)
            found.append((len(others) * size.square()).exp() * (difference * total).tanh())
        return found

    @override
    def combine(self, base: torch.Tensor, others: Sequence[torch.Tensor], weights: Sequence[float], at: At) -> torch.Tensor:
        ends, bounds = at.known
        made, divisor = torch.zeros_like(base), torch.zeros_like(base)
        for other, score, weight, end, bound in zip(others, self._scores(base, others, ends), weights, ends.tolist(), bounds.tolist()):
            share = weight * (score.clamp(bound[1], bound[0]) - bound[1]) / ((bound[0] - bound[1]) or 1.0)
            made += share * (other - base).clamp(-end[0], end[0])
            divisor += share
        return base + self.scale * made / divisor.masked_fill(divisor == 0, 1.0)
