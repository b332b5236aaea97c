"""DARE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.settings import param
from modicum.merge._family import At
from modicum.merge._pipeline import Pipeline, numbers


@dataclass(frozen=True, kw_only=True)
class Dare(Pipeline):
    """Most of each model's change is dropped at random, and the rest made larger so that its mean stays.

    Each entry of a change is kept with the probability ``density`` and then divided by it; what is left is added, after a vote on signs where
    ``vote``. Random numbers come from a counter whose key is the seed, the tensor and what the model holds: no thread and no order moves them.

    *Shapes:* tensors of one shape.

    *Needs and cost:* no data; a random number for each entry of each model.

    *Reduces to:* ``task_arithmetic`` at density 1 without a vote.

    *Raises:* nothing of its own.

    *Differences from the paper:* probabilities are multiples of 1/65536, and entries are divided by the very probability they are kept with. What
    is dropped of small tensors is not matched in norm, which would bias it: ``compat=mergekit`` does that, by the sum of sizes.

    Example:
        >>> made = Dare(density=0.5).combine(torch.zeros(4096), [torch.ones(4096)], [1.0], At("w", (4096,), (1.0,)))
        >>> made.unique(), round(made.mean().item(), 1)
        (tensor([0., 2.]), 1.0)

    """

    paper: ClassVar[Paper | None] = Paper(
        title="Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch",
        arxiv="2311.03099",
        year=2023,
        authors="Le Yu and Bowen Yu and Haiyang Yu and Fei Huang and Yongbin Li",
    )

    density: float = param(0.1, "probability that an entry of a change is kept", between=(0.0, 1.0))
    vote: bool = param(False, "whether models that disagree with an entry's elected sign are left out there")
    mean: bool = param(False, "whether what is kept is averaged instead of added")
    compat: str = param("none", "whose semantics hold where they differ from the paper's", choices=("none", "mergekit"))

    @property
    @override
    def blind(self) -> bool:
        return not self.vote and self.compat == "none"

    @property
    @override
    def elects(self) -> bool:
        return self.vote

    @property
    @override
    def means(self) -> bool:
        return self.mean

    @override
    def factor(self, difference: torch.Tensor, model: int, at: At) -> torch.Tensor | None:
        if self.density == 1:
            return None
        most = max(1, round(self.density * 65536)) if self.density else 0
        kept = numbers(at.draws(model, difference.numel()) < most, difference)
        if self.compat == "mergekit":
            size = (difference * kept).abs().sum()
            return kept * (difference.abs().sum() / size) if float(size) else kept
        return kept.mul_(65536 / most) if most else kept
