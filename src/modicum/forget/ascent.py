"""Gradient ascent: the loss on what is to be forgotten rises until it is that of something unknown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn
from typing_extensions import override

from modicum.core.settings import param
from modicum.forget.forgetter import Forgetter, Rows, updated
from modicum.train.rows import losses, stacked


@dataclass(frozen=True, kw_only=True)
class Ascent(Forgetter):
    """Up to ``steps`` updates against the gradient of the rows to forget, plus ``retain`` times that of as many rows to retain; the baseline.

    Ends as soon as the mean loss of the rows to forget is that of a row that the model knows nothing of.
    """

    named: ClassVar[bool] = True

    steps: int = param(100, "most updates", between=(1, 10**6))
    rate: float = param(1e-4, "learning rate of Adam", between=(1e-12, 10.0))
    retain: float = param(1.0, "weight of the loss on rows to retain", between=(0.0, 1e6))
    batch: int = param(32, "rows of each kind in an update", between=(1, 10**6))

    @override
    def forget(self, module: nn.Module, rows: Rows) -> None:
        def objective(places: list[int], step: int):
            value = -rows.loss(module, stacked([rows.forget[place] for place in places])).mean()
            if self.retain and rows.retain:
                others = [rows.retain[(step * self.batch + place) % len(rows.retain)] for place in range(min(self.batch, len(rows.retain)))]
                value = value + self.retain * rows.loss(module, stacked(others)).mean()
            return value

        reached = lambda: float(losses(module, rows.forget, rows.loss).mean()) >= rows.goal
        updated(
            module, len(rows.forget), objective, steps=self.steps, rate=self.rate, batch=self.batch, seed=rows.seed, until=reached
        )  # fmt: skip
