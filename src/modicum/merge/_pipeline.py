"""Drop, vote, rescale, add: the one pipeline whose settings are TIES, DARE, DELLA and breadcrumbs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from typing_extensions import override

from modicum.core.settings import param
from modicum.merge._family import At, Merge, with_signs


@dataclass(frozen=True, kw_only=True)
class Pipeline(Merge):
    """``base + scale · Σ w_i f_i (W_i - base) / Σ w_i`` over the models that are kept at an entry and agree with its elected sign.

    Files say what is kept of a difference, ``trimmed``, and by what that is multiplied, ``factor``. The mean is taken where ``averages``, else the
    sum. It is computed as a sum of whole weights, so that a single model that is kept whole comes out to the bit. Masks are numbers: torch takes four
    times as long for truth values, and fifteen times as long to choose between two tensors.
    """

    averages: ClassVar[bool] = True
    votes: ClassVar[bool] = True
    scale: float = param(1.0, "what the merged difference is multiplied by", between=(-1e6, 1e6))

    def trimmed(self, difference: torch.Tensor, model: int, at: At) -> torch.Tensor | None:
        """A model's difference with nothing where it is dropped, which may be made in its place; None where all stay."""
        return None

    def factor(self, difference: torch.Tensor, model: int, at: At) -> torch.Tensor | None:
        """By what each entry of a model's difference is multiplied, 0 where it is dropped; None where by 1."""
        return None

    @property
    def blind(self) -> bool:
        """Whether what is kept depends on chance alone, so that no difference is taken."""
        return False

    @property
    def elects(self) -> bool:
        """Whether models that disagree with the elected sign are left out of an entry."""
        return self.votes

    @property
    def means(self) -> bool:
        """Whether a mean is taken, not a sum."""
        return self.averages

    def elected(self, total: torch.Tensor) -> torch.Tensor:
        """Sign of each entry, of the weighted sum of what was kept; 0 where both signs weigh the same, so that nobody agrees.

        The sum may be changed.
        """
        return total.sign_()

    @override
    def combine(self, base: torch.Tensor, others: Sequence[torch.Tensor], weights: Sequence[float], at: At) -> torch.Tensor:
        if self.means and min(weights) == max(weights) != 0:
            weights = (1.0,) * len(weights)
        kept, factors = self._kept(base, others, weights, at)
        made = added(others, factors, [weight * self.scale for weight in weights])
        total = added(factors, None, weights)
        if not self.means:
            rest = torch.rsub(total, 1.0, alpha=self.scale)
            return with_signs(made.addcmul_(rest, base), (base, *others), (rest, *factors))
        whole = total if kept is factors else added(kept, None, weights)
        nobody = torch.eq(whole, 0, out=torch.empty_like(base))
        rest = nobody if whole is total and self.scale == 1 else torch.sub(whole + nobody, total, alpha=self.scale)
        made.addcmul_(rest, base).div_(whole.add_(nobody))
        return with_signs(made, (base, *others), (rest, *factors))

    def _kept(
        self, base: torch.Tensor, others: Sequence[torch.Tensor], weights: Sequence[float], at: At
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """By model 1 where an entry counts and 0 where not, and by what it is multiplied; one list where that is the same."""
        votes = self.elects and len(others) > 1
        factors: list[torch.Tensor | None] = []
        shares: list[torch.Tensor] = []
        for model, other in enumerate(others):
            difference = other if self.blind else other - base
            stays = self.trimmed(difference, model, at)
            share = difference if stays is None else stays
            factor = self.factor(share, model, at)
            if votes:
                shares.append(share if factor is None else share.mul_(factor))
            elif stays is not None:
                shares.append(torch.ne(stays, 0, out=stays))
            elif factor is None:
                shares.append(torch.ones_like(base))
            else:
                shares.append(torch.ne(factor, 0, out=torch.empty_like(factor)) if self.means else factor)
            factors.append(factor)
        if votes:
            sign = self.elected(added(shares, None, weights))
            for share, weight in zip(shares, weights):  # a difference of nothing agrees with no sign
                share.mul_(sign)
                torch.gt(share, 0, out=share) if weight >= 0 else torch.lt(share, 0, out=share)
        if all(factor is None for factor in factors):
            return shares, shares
        of = lambda share, factor: share if factor is None or factor is share else factor.mul_(share)
        return shares, [of(share, factor) for share, factor in zip(shares, factors)]


def added(tensors: Sequence[torch.Tensor], others: Sequence[torch.Tensor] | None, weights: Sequence[float]) -> torch.Tensor:
    """Their sum by weights, of products entry by entry where there are ``others``."""
    first = 1
    if others is None and weights[0] == 1 and len(tensors) > 1:
        made, first = torch.add(tensors[0], tensors[1], alpha=weights[1]), 2
    elif others is None:
        made = tensors[0] * weights[0]
    else:
        made = tensors[0] * others[0] if weights[0] == 1 else (tensors[0] * others[0]).mul_(weights[0])
    for place in range(first, len(tensors)):
        if others is None:
            made.add_(tensors[place], alpha=weights[place])
        else:
            made.addcmul_(tensors[place], others[place], value=weights[place])
    return made


def numbers(mask: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    """Ones and zeros in the shape and dtype of another tensor; from truth values torch takes eight times as long."""
    return torch.from_numpy(mask.view(np.int8)).to(like.dtype).reshape(like.shape)


def sizes(base: torch.Tensor, others: Sequence[torch.Tensor], at: At) -> torch.Tensor:
    """Size of each model's difference from the base (models, entries)."""
    found = torch.empty(len(others), base.numel(), dtype=base.dtype)
    for mine, other in zip(found, others):
        torch.sub(other.reshape(-1), base.reshape(-1), out=mine).abs_()
    return found


def at_least(values: torch.Tensor, size: float) -> torch.Tensor:
    """The values with nothing where they are smaller than a size."""
    below = np.nextafter(values.numpy().dtype.type(size), values.numpy().dtype.type(0))
    return torch.nn.functional.hardshrink(values, float(below))
