"""Wanda: weights count by what they multiply."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from modicum.core.method import Need, Paper
from modicum.core.unit import Stats
from modicum.prune._family import Pruner
from modicum.prune.magnitude import Magnitude


@dataclass(frozen=True, kw_only=True)
class Wanda(Pruner):
    """Keep, row by row, the weights with the largest product of magnitude and input norm.

    The score of an entry is ``|w_ij| · ‖x_j‖``; rows compete with nobody but themselves.

    *Shapes:* weight (rows, columns), input norms (columns,). *Needs and cost:* input norms, one sort per row. *Reduces to:* magnitude per
    row where all inputs have one norm. *Raises:* ``SettingError`` for a malformed pattern. Weights whose inputs were not seen take
    ``magnitude``.

    Example:
        >>> import torch
        >>> Wanda().score(torch.tensor([[1.0, -3.0]]), Stats(square=torch.tensor([16.0, 1.0])))
        tensor([[4., 3.]])

    """

    paper = Paper("A Simple and Effective Pruning Approach for Large Language Models", "2306.11695", 2023, "Sun, Mingjie and others")
    needs = frozenset({Need.NORMS})
    scope = "row"

    def without_data(self) -> Magnitude:
        """The stand-in for weights whose inputs were not seen."""
        return Magnitude(keep=self.keep, pattern=self.pattern, per_row=True)

    def score(self, weight: torch.Tensor, stats: Stats) -> torch.Tensor:
        """Magnitude times input norm."""
        return weight.abs() * stats.norm
