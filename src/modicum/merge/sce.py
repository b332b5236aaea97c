"""SCE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.settings import param
from modicum.merge._family import At, Largest, Merge, Survey, Total, counted


@dataclass(frozen=True, kw_only=True)
class Sce(Merge):
    """Select the entries in which models vary most, weigh models by what they changed there, erase what goes against the majority.

    The share ``select`` of a tensor's entries with the largest variance stays; a model's weight is its share of the squares of what is left;
    entries whose sign is not that of their sum are erased. ``W_0 + Σ v_i d_i / Σ v_i`` over what is left.

    *Shapes:* tensors of one shape.
    *Needs and cost:* no data; every tensor is read four times: for the variances, for the squares, and to merge.
    *Reduces to:* the model, where there is one.
    *Raises:* ``SettingError`` for weights that are no shares.
    *Differences from the paper:* a model's weight multiplies the one it is given. ``compat=mergekit`` takes entries that do not vary out of the
    share, and weighs all alike where mean squares are below 1e-6.

    Example:
        >>> at = At("w", (2,), (1.0, 1.0), known=(torch.tensor([[0.0]]), torch.tensor([4.0, 1.0])))
        >>> Sce().combine(torch.zeros(2), [torch.tensor([2.0, 0.0]), torch.tensor([-1.0, 0.0])], [1.0, 1.0], at)
        tensor([2., 0.])

    """

    paper: ClassVar[Paper | None] = Paper(
        title="FuseChat: Knowledge Fusion of Chat Models", arxiv="2408.07990", year=2024,
        authors="Fanqi Wan and Longguang Zhong and Ziyi Yang and Ruijun Chen and Xiaojun Quan",
    )  # fmt: skip
    shares: ClassVar[bool] = True

    select: float = param(0.1, "share of each tensor's entries that stays, those that vary most", between=(0.0, 1.0))
    compat: str = param("none", "whose semantics hold where they differ from the paper's", choices=("none", "mergekit"))

    @override
    def survey(self, models: int, entries: int) -> Survey:
        kept = counted(self.select, entries)
        if self.compat == "mergekit" and self.select < 1:
            kept = int(self.select * int((yield Total(lambda base, others, at: (_variance(base, others) != 0).sum()))))
        least = (yield Largest(lambda base, others, at: _variance(base, others)[None], (kept,))) if self.select < 1 else torch.zeros(1, 1)
        squares = yield Total(lambda base, others, at: torch.stack([d.double().square().sum() for d in _kept(base, others, least)]))
        if self.compat == "mergekit" and float(squares.sum()) / max(1, entries) < 1e-6:
            squares = torch.ones_like(squares)
        return least, squares

    @override
    def combine(self, base: torch.Tensor, others: Sequence[torch.Tensor], weights: Sequence[float], at: At) -> torch.Tensor:
        least, squares = at.known
        strength = [weight * float(square) for weight, square in zip(weights, squares)]
        differences = _kept(base, others, least)
        sign, sums, made = torch.stack(differences).sum(0).sign(), torch.zeros_like(base), torch.zeros_like(base)
        shares = [((each.sign() == sign) & (each != 0)).to(base.dtype) * mine for mine, each in zip(strength, differences)]
        divisor = torch.stack(shares).sum(0)
        for share, other in zip(shares, others):
            coefficient = share / divisor.masked_fill(divisor == 0, 1.0)
            sums += coefficient
            made.addcmul_(coefficient, other)
        return made.addcmul_(1 - sums, base)


def _variance(base: torch.Tensor, others: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack([other - base for other in others]).var(0, correction=0)


def _kept(base: torch.Tensor, others: Sequence[torch.Tensor], least: torch.Tensor) -> list[torch.Tensor]:
    mask = _variance(base, others) >= float(least)
    return [(other - base) * mask for other in others]
