"""Drop, vote, rescale, add: the one pipeline whose settings are TIES, DARE, DELLA and breadcrumbs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from modicum.core.settings import param
from modicum.merge._family import At, Merge


@dataclass(frozen=True, kw_only=True)
class Pipeline(Merge):
    """``base + scale · Σ w_i f_i (W_i - base) / Σ w_i f_i`` over the models that are kept at an entry and agree with its elected sign.

    Files say what is kept of a difference, and by what it is multiplied: ``factor``. The mean is taken where ``averages``, else the sum. It is
    computed as a sum of whole weights, ``(1 - Σ c) base + Σ c_i W_i``, so that a single model that is kept whole comes out to the bit.
    """

    averages: ClassVar[bool] = True
    votes: ClassVar[bool] = True

    scale: float = param(1.0, "what the merged difference is multiplied by", between=(-1e6, 1e6))

    def factor(self, difference: torch.Tensor, model: int, at: At) -> torch.Tensor | None:
        """By what each entry of a model's difference is multiplied, 0 where it is dropped; None where all stay."""
        return None

    @property
    def elects(self) -> bool:
        """Whether models that disagree with the elected sign are left out of an entry."""
        return self.votes

    @property
    def means(self) -> bool:
        """Whether a mean is taken, not a sum."""
        return self.averages

    def elected(self, total: torch.Tensor) -> torch.Tensor:
        """Sign of each entry, of the weighted sum of what was kept; 0 where both signs weigh the same, so that nobody agrees."""
        return total.sign()

    @override
    def combine(self, base: torch.Tensor, others: Sequence[torch.Tensor], weights: Sequence[float], at: At) -> torch.Tensor:
        differences = [other - base for other in others]
        coefficients = []
        for model, difference in enumerate(differences):
            factor = self.factor(difference, model, at)
            coefficients.append(torch.full_like(base, weights[model]) if factor is None else factor * weights[model])
        kept = [coefficient != 0 for coefficient in coefficients] if self.means else []
        if self.elects and len(others) > 1:
            total = torch.zeros_like(base)
            for difference, coefficient in zip(differences, coefficients):
                total.addcmul_(difference, coefficient)
            sign = self.elected(total)
            for model, difference in enumerate(differences):
                agrees = difference.sign_() == sign  # a difference of nothing agrees with no sign
                coefficients[model].mul_(agrees)
                if self.means:
                    kept[model] &= agrees
        strength = self.scale
        divisor: torch.Tensor | None = None
        if self.means:
            divisor = torch.zeros_like(base)
            for model, mine in enumerate(kept):
                divisor.add_(mine, alpha=weights[model])
            divisor.masked_fill_(divisor == 0, 1.0)
        made, sums = torch.zeros_like(base), torch.zeros_like(base)
        for coefficient, other in zip(coefficients, others):
            if divisor is not None:
                coefficient.div_(divisor)
            if strength != 1:
                coefficient.mul_(strength)
            sums.add_(coefficient)
            made.addcmul_(coefficient, other)
        return made.addcmul_(sums.neg_().add_(1.0), base)


def sizes(base: torch.Tensor, others: Sequence[torch.Tensor], at: At) -> torch.Tensor:
    """Size of each model's difference from the base (models, entries)."""
    return torch.stack([other.reshape(-1) - base.reshape(-1) for other in others]).abs_()
