"""SR-STE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.parametrization import State, Step
from modicum.core.settings import param
from modicum.restrict._family import Pattern, through

if TYPE_CHECKING:
    pass


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
        latent = state["latent"]
        return through(latent, latent.detach() * self.mask(latent.detach()))

    @override
    def penalty(self, states: Mapping[str, State], step: Step) -> torch.Tensor | None:
        """Half the squares of what is not used, times ``decay``."""
        if not self.decay:
            return None
        unused = [(state["latent"] * ~self.mask(state["latent"].detach())).square().sum() for state in states.values()]
        return self.decay / 2 * torch.stack(unused).sum()
