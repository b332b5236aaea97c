"""Negative preference optimization: ascent that slows down where a row is forgotten already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.settings import param
from modicum.forget.forgetter import Forgetter, Rows, updated
from modicum.train.rows import losses, stacked


@dataclass(frozen=True, kw_only=True)
class Npo(Forgetter):
    """Minimizes ``2/beta · mean log(1 + (p / p before)^beta)`` over rows to forget, plus ``retain`` times the loss of rows to retain.

    *Reduces to* gradient ascent as ``beta`` falls to 0. *Needs and cost:* a pass over the rows to forget first, then ``steps`` updates.
    """

    paper: ClassVar[Paper | None] = Paper(
        title="Negative Preference Optimization: From Catastrophic Collapse to Effective Unlearning",
        arxiv="2404.05868",
        year=2024,
        authors="Ruiqi Zhang and Licong Lin and Yu Bai and Song Mei",
    )

    beta: float = param(0.5, "how fast a row that is forgotten stops to count", between=(1e-6, 1e3))
    steps: int = param(100, "updates", between=(1, 10**6))
    rate: float = param(3e-4, "learning rate of Adam", between=(1e-12, 10.0))
    retain: float = param(1.0, "weight of the loss on rows to retain", between=(0.0, 1e6))
    batch: int = param(32, "rows of each kind in an update", between=(1, 10**6))

    @override
    def forget(self, module: nn.Module, rows: Rows) -> None:
        before = losses(module, rows.forget, rows.loss)

        def objective(places: list[int], step: int) -> torch.Tensor:
            now = rows.loss(module, stacked([rows.forget[place] for place in places]))
            value = nn.functional.softplus(self.beta * (before[places] - now)).mean() * 2 / self.beta
            if self.retain and rows.retain:
                others = [rows.retain[(step * self.batch + place) % len(rows.retain)] for place in range(min(self.batch, len(rows.retain)))]
                value = value + self.retain * rows.loss(module, stacked(others)).mean()
            return value

        updated(module, len(rows.forget), objective, steps=self.steps, rate=self.rate, batch=self.batch, seed=rows.seed)
