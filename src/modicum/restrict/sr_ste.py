"""SR-STE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.utils.weak import WeakIdKeyDictionary
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.parametrization import State, Step
from modicum.core.settings import param
from modicum.restrict._family import Pattern


@dataclass(frozen=True, kw_only=True)
class SrSte(Pattern):
    """Of every ``m`` entries of a row the ``n`` largest are used; all are trained as if they were, and those that are not are drawn to zero.

    The gradient goes straight through the mask, and ``decay · (1 - mask) · w`` is added to it, so that masks come to rest.

    *Shapes:* latent (rows, columns), trained.

    *Needs and cost:* no statistics; rows · columns trained numbers, of which n of m are stored.

    *Reduces to:* dense training with ``n`` equal to ``m``.

    *Raises:* nothing of its own.

    *Differences from the paper:* none known.

    Example:
        >>> str(SrSte(n=1, m=8))
        'sr_ste n=1 m=8'

    """

    paper: ClassVar[Paper | None] = Paper(
        title="Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch",
        arxiv="2102.04010",
        year=2021,
        authors="Aojun Zhou and Yukun Ma and Junnan Zhu and Jianbo Liu and Zhijie Zhang and Kun Yuan and Wenxiu Sun and Hongsheng Li",
    )

    decay: float = param(2e-4, "how strongly entries that are not used are drawn to zero", between=(0.0, 10.0))

    @override
    def weight(self, base: torch.Tensor | None, state: State, step: Step) -> torch.Tensor:
        """The largest entries; the gradient is all entries'."""
        return state["latent"] - self._unused(state["latent"])

    def _unused(self, latent: torch.Tensor) -> torch.Tensor:
        """What is not used of a tensor as it is now, for which the weight and the penalty of an update ask; no gradient goes through it."""
        now = (latent._version, latent.data_ptr(), self.n, self.m)
        known = _UNUSED.get(latent)
        if known is None or known[0] != now:
            held = latent.detach()
            known = _UNUSED[latent] = now, torch.addcmul(held, held, self.used(held), value=-1)
        return known[1]

    @override
    def penalty(self, states: Mapping[str, State], step: Step) -> torch.Tensor | None:
        """Half the squares of what is not used, times ``decay``."""
        if not self.decay:
            return None
        latents = [state["latent"] for state in states.values()]
        return self.decay / 2 * _Squares.apply([self._unused(latent) for latent in latents], *latents)


# What is not used of tensors that are trained, by the tensor, as long as it is there.
_UNUSED = WeakIdKeyDictionary()


class _Squares(torch.autograd.Function):
    """The sum of the squares of what is not used of several tensors."""

    @staticmethod
    def forward(ctx, unused: list[torch.Tensor], *latents: torch.Tensor) -> torch.Tensor:
        ctx.unused = unused
        return torch.stack([each.reshape(-1).dot(each.reshape(-1)) for each in unused]).sum()

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        return None, *(each * (2 * gradient) for each in ctx.unused)
