"""Gradients without a backward pass: a step of an option that says how they are had from values of the loss alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modicum.core.method import Trainable

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Estimator(Trainable):
    """Takes the backward pass's place for all that is trained, as in ``fish keep=0.001 | mezo``; nothing is kept for a backward pass then."""

    def estimate(self, loss: Callable[[], float], parameters: Sequence[torch.Tensor], seed: int) -> float:
        """The loss about where the ``parameters`` are, with an estimate of its gradient added to the ``grad`` of each.

        ``loss`` computes with the parameters as they stand, the same chance in every call, and tracks nothing. They may be moved on the way and are
        put back to the bit. ``seed`` is the update's.
        """
        raise NotImplementedError
