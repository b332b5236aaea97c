"""Editing of a change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.settings import param
from modicum.merge._family import At, Merge, Survey, Total


@dataclass(frozen=True, kw_only=True)
class DeltaEditing(Merge):
    """A model's change in another form: dropped in part and rescaled, brought to signs, or drawn out; what each costs is told before.

    With ``drop`` p of the entries, drawn at random, are multiplied by ``left``, the rest by ``(1 - left · p) / (1 - p)``, which keeps the mean:
    DARE at left 0. With ``signs`` each entry becomes its sign times the mean size of its tensor's: BitDelta. ``scale`` draws the change out.
    By Riemann sums along the way ``ΔL ≈ Σ_c <δ' - δ, ∇L(W + c (δ' - δ))> / C`` says which edits a model takes.

    *Shapes:* tensors of one shape.

    *Needs and cost:* no data; every tensor is read twice for signs; a random number an entry where something is dropped.

    *Reduces to:* ``dare`` at left 0; ``task_arithmetic`` where nothing is edited.

    *Raises:* nothing of its own.

    *Differences from the paper:* probabilities are multiples of 1/65536; several changes are edited one by one and added.

    Example:
        >>> at = At("w", (2,), (1.0,), known=torch.tensor([4.0]))
        >>> DeltaEditing(signs=True).combine(torch.zeros(2), [torch.tensor([1.0, -3.0])], [1.0], at)
        tensor([ 2., -2.])

    """

    paper: ClassVar[Paper | None] = Paper(
        title="A Unified View of Delta Parameter Editing in Post-Trained Large-Scale Models",
        arxiv="2410.13841",
        year=2024,
        authors="Qiaoyu Tang and Le Yu and Bowen Yu and Hongyu Lin and Keming Lu and Yaojie Lu and Xianpei Han and Le Sun",
    )

    drop: float = param(0.0, "share of a change's entries that are multiplied by left", between=(0.0, 0.9999))
    left: float = param(0.0, "what dropped entries are multiplied by", between=(-100.0, 100.0))
    signs: bool = param(False, "whether entries become their sign times their tensor's mean size")
    scale: float = param(1.0, "what the change is multiplied by", between=(-1e6, 1e6))

    @override
    def survey(self, models: int, entries: int) -> Survey:
        if not self.signs:
            return None
        return (yield Total(lambda base, others, at: torch.stack([(other - base).double().abs().sum() for other in others])))

    @override
    def combine(self, base: torch.Tensor, others: Sequence[torch.Tensor], weights: Sequence[float], at: At) -> torch.Tensor:
        made, sums = torch.zeros_like(base), torch.zeros_like(base)
        whole = torch.Size(at.shape).numel()
        dropped = round(self.drop * 65536)
        for place, (other, weight) in enumerate(zip(others, weights)):
            factor = torch.full_like(base, weight * self.scale)
            if dropped:
                share = dropped / 65536
                kept = (1 - self.left * share) / (1 - share)
                factor *= (
                    torch.from_numpy(np.where(at.draws(place, base.numel()) < dropped, self.left, kept)).reshape(base.shape).to(base.dtype)
                )
            if self.signs:
                mean = float(at.known[place]) / whole
                made += factor * (other - base).sign() * mean
            else:
                made.addcmul_(factor, other)
                sums += factor
        return made.addcmul_(1 - sums, base)
