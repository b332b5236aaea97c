"""DELLA."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from typing_extensions import override

from modicum.core.errors import SettingError
from modicum.core.method import Paper
from modicum.core.settings import param
from modicum.merge._family import At
from modicum.merge._pipeline import Pipeline


@dataclass(frozen=True, kw_only=True)
class Della(Pipeline):
    """Entries of each model's change are dropped at random, small ones more often than large ones, and the rest rescaled one by one.

    In each row the entries are ranked by size; the probability to be kept rises evenly from ``density - window`` for the smallest to ``density +
    window`` for the largest. A kept entry is divided by its own probability. Then each entry elects a sign, and what agrees is averaged.

    *Shapes:* tensors of one shape; vectors are one row.
    *Needs and cost:* no data; rows are sorted, and a random number is drawn for each entry of each model.
    *Reduces to:* ``dare`` with ``vote`` and ``mean`` at window 0.
    *Raises:* ``SettingError`` where density and window leave the probabilities from 0 to 1, and for weights that are no shares.
    *Differences from the paper:* ranks are exact at any length of a row; probabilities are multiples of 1/65536.

    Example:
        >>> base, one = torch.zeros(1, 4096), torch.ones(1, 4096)
        >>> made = Della(density=0.5, window=0.1).combine(base, [one], [1.0], At("w", (1, 4096), (1.0,)))
        >>> round(made.mean().item(), 1)
        1.0

    """

    paper: ClassVar[Paper | None] = Paper(
        title="DELLA-Merging: Reducing Interference in Model Merging through Magnitude-Based Sampling", arxiv="2406.11617", year=2024,
        authors="Pala Tej Deep and Rishabh Bhardwaj and Soujanya Poria",
    )  # fmt: skip
    rows: ClassVar[bool] = True
    shares: ClassVar[bool] = True

    density: float = param(0.5, "mean probability that an entry of a change is kept", between=(0.0, 1.0))
    window: float = param(0.15, "how far the probabilities of the smallest and of the largest are from the mean", between=(0.0, 0.5))

    @override
    def check(self, weights: Sequence[float]) -> None:
        super().check(weights)
        if self.density < 1 and not self.window <= self.density <= 1 - self.window:
            raise SettingError(f"della: density must be at least window away from 0 and 1, got {self.density:g} and {self.window:g}.")

    @override
    def factor(self, difference: torch.Tensor, model: int, at: At) -> torch.Tensor | None:
        if self.density == 1:
            return None
        row = math.prod(at.shape[1:]) if len(at.shape) > 1 else difference.numel()
        most = ((self.density - self.window + 2 * self.window * (np.arange(row) / max(1, row - 1))) * 65536).round()
        order = torch.from_numpy(_order(difference.abs().reshape(-1, row).numpy()))
        ranked = torch.from_numpy(most.astype(np.float32)).expand(order.shape)
        mine = torch.empty(order.shape).scatter_(1, order, ranked).numpy()
        kept = at.draws(model, difference.numel()).reshape(mine.shape) < mine
        return torch.from_numpy(kept * (65536 / mine.clip(1))).reshape(difference.shape).to(difference.dtype)


def _order(sizes: np.ndarray) -> np.ndarray:
    """Places of each row's sizes (rows, entries) from the smallest up, equal ones in their order: sorted with their place behind their bits."""
    if sizes.dtype != np.float32:
        return np.argsort(sizes, axis=1, kind="stable")
    keys = np.empty(sizes.shape, np.uint64)
    high, low = np.moveaxis(keys.view(np.uint32).reshape(*sizes.shape, 2), -1, 0)[:: -1 if sys.byteorder == "little" else 1]
    high[:], low[:] = sizes.view(np.uint32), np.arange(sizes.shape[1], dtype=np.uint32)
    keys.sort(axis=1)
    return low.astype(np.int64)
