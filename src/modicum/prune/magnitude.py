"""Magnitude: the smallest weights go."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from modicum.core.method import Paper
from modicum.core.settings import param
from modicum.core.unit import Stats
from modicum.prune._family import Pruner


@dataclass(frozen=True, kw_only=True)
class Magnitude(Pruner):
    """Keep the weights of largest magnitude in each tensor, or in each row.

    The baseline of the family: the score of an entry is ``|w|``.

    *Shapes:* weight (rows, columns). *Needs and cost:* no data, one sort. *Reduces to:* the original weights at ``keep=1``.
    *Raises:* ``SettingError`` for a malformed pattern.

    Example:
        >>> import torch
        >>> Magnitude(keep=0.5).score(torch.tensor([[1.0, -3.0]]), Stats())
        tensor([[1., 3.]])

    """

    paper = Paper("Learning both Weights and Connections for Efficient Neural Networks", "1506.02626", 2015, "Han, Song and others")

    per_row: bool = param(False, "rows compete with nobody but themselves")

    def score(self, weight: torch.Tensor, stats: Stats) -> torch.Tensor:
        """Magnitude of each entry."""
        return weight.abs()
