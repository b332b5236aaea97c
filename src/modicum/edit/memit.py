"""MEMIT: many facts at once, spread over several layers, with ordinary text protected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from modicum.core.method import Paper
from modicum.edit.located import Located


@dataclass(frozen=True, kw_only=True)
class Memit(Located):
    """Each layer's change is ``(Σ v kᵀ)(Σ k kᵀ + text · C)⁻¹`` with ``C`` the second moment of the layer's inputs on ordinary text.

    *Needs and cost:* a subject in each fact; ``steps`` forward and backward passes of the batch, then one forward pass and columns³ per layer.
    *Differs from the paper:* contexts are pieces of ordinary text rather than written by the model, and the wanted state is held back by its size.
    """

    paper: ClassVar[Paper | None] = Paper(
        title="Mass-Editing Memory in a Transformer",
        arxiv="2210.07229",
        year=2022,
        authors="Kevin Meng and Arnab Sen Sharma and Alex Andonian and Yonatan Belinkov and David Bau",
    )
