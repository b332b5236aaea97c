"""SaRA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from modicum.adapt._family import SparseAdapter, counted, scatter, weight_of
from modicum.core.method import Paper
from modicum.core.parametrization import Revision, Start, State, Step
from modicum.core.settings import param


@dataclass(frozen=True, kw_only=True)
class Sara(SparseAdapter):
    """The smallest entries of a weight, which do little, are put to use; halfway those that have become large are left as they are.

    ``W + S`` with ``strength · |S|`` in the nuclear norm added to the loss, so that the change is of low rank.

    *Shapes:* entries (count,), count = keep · rows · columns; after half of training fewer of them move.

    *Needs and cost:* no statistics; count trained numbers; one decomposition of each change per step unless ``strength=0``.

    *Reduces to:* full fine-tuning with ``keep=1 strength=0``, in its first half.

    *Raises:* nothing of its own.

    *Differences from the paper:* the smallest entries are counted in each weight, not over all by one threshold.

    Example:
        >>> str(Sara(keep=0.1))
        'sara keep=0.1'

    """

    paper: ClassVar[Paper | None] = Paper(
        title="SaRA: High-Efficient Diffusion Model Fine-tuning with Progressive Sparse Low-Rank Adaptation",
        arxiv="2409.06633",
        year=2024,
        authors="Teng Hu and Jiangning Zhang and Ran Yi and Hongrui Huang and Yabiao Wang and Lizhuang Ma",
    )
    rate: ClassVar[float] = 3e-2

    keep: float = param(0.1, "share of entries that are trained, the smallest ones", between=(1e-9, 1.0), dial=True)
    strength: float = param(1e-4, "what the change's nuclear norm is multiplied by in the loss", between=(0.0, 1e6))

    @override
    def begin(self, start: Start) -> State:
        """Zeros at the smallest entries."""
        flat = weight_of(start).reshape(-1)
        places = flat.abs().argsort(stable=True)[: counted(self.keep, start)].sort().values
        zeros, settled = torch.zeros(len(places)), torch.zeros(len(places), dtype=torch.bool)
        return State({"entries": zeros}, {"places": places, "weights": flat[places], "settled": settled, "values": zeros}, base=start.base)

    @override
    def entries(self, state: State) -> tuple[torch.Tensor, torch.Tensor]:
        """Those that are trained, and those that have settled at their values."""
        return torch.where(state["settled"], state["values"], state["entries"]), state["places"]

    @override
    def penalty(self, states: Mapping[str, State], step: Step) -> torch.Tensor | None:
        """The nuclear norms of the changes; none at the first step, where they have no gradient."""
        if not self.strength or not step.number:
            return None
        changes = [scatter(*self.entries(state), state.base.shape) for state in states.values() if state.base is not None]
        return self.strength * torch.stack([torch.linalg.matrix_norm(change, "nuc") for change in changes]).sum()

    @override
    def revise(self, states: Mapping[str, State], gradients: Mapping[str, torch.Tensor], budget: int, step: Step) -> Revision | None:
        """Halfway only what is still small goes on."""
        if step.number != step.total // 2:
            return None
        revised = {}
        for unit, state in states.items():
            entries, weights = state["entries"].detach().clone(), state["weights"]
            revised[unit] = state.having(frozen={"settled": (weights + entries).abs() > weights.abs().max(), "values": entries})
        return Revision(revised)
