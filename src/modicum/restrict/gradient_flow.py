"""Progressive gradient flow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.parametrization import State, Step
from modicum.core.settings import param
from modicum.restrict._family import Pattern


@dataclass(frozen=True, kw_only=True)
class GradientFlow(Pattern):
    """Of every ``m`` entries of a row the ``n`` largest count in full, and the others less and less, until they are gone.

    The others are multiplied by ``1 - share / until`` of training, in the product as in the gradient: gradients of what is about to go stay
    true, where a straight-through gradient would not be.

    *Shapes:* latent (rows, columns), trained.

    *Needs and cost:* no statistics; rows · columns trained numbers, of which n of m are stored.

    *Reduces to:* dense training with ``n`` equal to ``m``.

    *Raises:* nothing of its own.

    *Differences from the paper:* the factor falls linearly; the paper also has a structure that decays.

    Example:
        >>> GradientFlow(until=0.5).factor(Step(1, 4))
        0.5

    """

    paper: ClassVar[Paper | None] = Paper(
        title="Progressive Gradient Flow for Robust N:M Sparsity Training in Transformers",
        arxiv="2402.04744",
        year=2024,
        authors="Abhimanyu Rajeshkumar Bambhaniya and Amir Yazdanbakhsh and Suvinay Subramanian and Sheng-Chun Kao and Shivani Agrawal and others",
    )

    until: float = param(0.75, "share of training after which the others are gone", between=(1e-6, 1.0))

    def factor(self, step: Step) -> float:
        """What entries that are not among the largest are multiplied by."""
        return max(0.0, 1 - step.share / self.until)

    @override
    def weight(self, base: torch.Tensor | None, state: State, step: Step) -> torch.Tensor:
        """The largest entries, and less of the others."""
        latent, factor = state["latent"], self.factor(step)
        return latent * self.used(latent.detach()).clamp_min_(factor)

    @override
    def density(self, step: Step) -> float:
        """All, while others count."""
        return 1.0 if self.factor(step) else super().density(step)
