"""APET."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from typing_extensions import override

from modicum.adapt._family import SparseAdapter, counted
from modicum.core.method import Paper
from modicum.core.parametrization import Start, State
from modicum.core.settings import param
from modicum.forms import Sparse, Sum
from modicum.forms.leaves import scattered

if TYPE_CHECKING:
    from modicum.forms import Form


@dataclass(frozen=True, kw_only=True)
class Apet(SparseAdapter):
    """Entries at places drawn at random are trained, and no others.

    ``W + S``: as few numbers as wanted, without any structure; a file holds the entries and the seed of their places.

    *Shapes:* entries (count,), count = keep · rows · columns.

    *Needs and cost:* no statistics; count trained numbers.

    *Reduces to:* full fine-tuning with ``keep=1``.

    *Raises:* nothing of its own.

    *Differences from the paper:* the share is the same of every weight that the plan names.

    Example:
        >>> str(Apet(keep=0.01))
        'apet keep=0.01'

    """

    paper: ClassVar[Paper | None] = Paper(
        title="Arbitrary Few Parameters are Good Enough for Adapting Large-scale Pre-trained Language Models",
        arxiv="2306.02320",
        year=2023,
        authors="Yusheng Su and Chi-Min Chan and Jiali Cheng and Yujia Qin and Yankai Lin and Shengding Hu and Zonghan Yang and others",
    )
    rate: ClassVar[float] = 3e-2

    keep: float = param(0.01, "share of entries that are trained", between=(1e-9, 1.0), dial=True)

    @override
    def begin(self, start: Start) -> State:
        """Zeros at places of the seed."""
        places = scattered(start.seed, counted(self.keep, start), start.shape[0] * start.shape[1])
        return State({"entries": torch.zeros(len(places))}, {"places": places, "seed": torch.tensor(start.seed)}, base=start.base)

    @override
    def form(self, state: State) -> Form:
        """Entries under a seed."""
        assert state.base is not None
        return Sum((state.base, Sparse(state["entries"], state.base.shape, seed=int(state["seed"]))))
