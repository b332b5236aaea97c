"""GBLM-Pruner: weights count by what they multiply, and by what the loss feels of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from modicum.core.method import Need, Paper
from modicum.core.settings import param
from modicum.core.unit import Stats
from modicum.prune._family import Pruner
from modicum.prune.magnitude import Magnitude


@dataclass(frozen=True, kw_only=True)
class Gblm(Pruner):
    """Keep, row by row, the weights with the largest magnitude times the sum of input norm and gradient norm.

    The score of an entry is ``|w_ij| (‖x_j‖ / mean + gradients · ‖g_ij‖ / mean)``: ``‖g_ij‖`` is the norm over the sequences of the gradient of each
    one's mean loss, and each norm is taken relative to its mean over the layer. Rows compete with nobody but themselves.

    *Shapes:* weight and gradient norms (rows, columns), input norms (columns,). *Needs and cost:* input norms and a backward pass of each of
    ``--gradient-samples`` sequences; one sort per row. *Reduces to:* Wanda where ``gradients=0``. *Raises:* ``SettingError`` for a malformed pattern.
    Weights whose inputs or gradients were not seen take ``magnitude`` per row.

    *Differences from the paper:* both norms are taken relative to their means, so that one share serves all layers and losses (there gradients
    are scaled by a number found for each model); outside causal language models labels are drawn from the model's own output.

    Example:
        >>> import torch
        >>> from modicum.core.slopes import Slopes
        >>> slopes = Slopes(1, torch.zeros(1, 2), torch.tensor([[9.0, 1.0]]))
        >>> Gblm(gradients=1.0).score(torch.tensor([[1.0, -1.0]]), Stats(square=torch.ones(2), slopes=slopes))
        tensor([[2.5000, 1.5000]])

    """

    paper = Paper(
        "Beyond Size: How Gradients Shape Pruning Decisions in Large Language Models", "2311.04902", 2023, "Das, Rocktim Jyoti and others"
    )
    needs = frozenset({Need.NORMS, Need.SLOPES})
    scope = "row"

    gradients: float = param(0.1, "what gradient norms count beside input norms", between=(0.0, 1e6))

    def without_data(self) -> Magnitude:
        """The stand-in for weights whose inputs or gradients were not seen."""
        return Magnitude(keep=self.keep, pattern=self.pattern, per_row=True)

    def score(self, weight: torch.Tensor, stats: Stats) -> torch.Tensor:
        """Magnitude times both norms."""
        assert stats.slopes is not None
        share = lambda norm: norm / norm.mean().clamp_min(1e-30)
        return weight.abs() * (share(stats.norm) + self.gradients * share(stats.slopes.norm))
