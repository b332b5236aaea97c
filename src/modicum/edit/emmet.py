"""EMMET: many facts at once as equalities, in one layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from modicum.core.method import Paper
from modicum.edit.located import Located


@dataclass(frozen=True, kw_only=True)
class Emmet(Located):
    """ROME's equality for a batch: the least change in the norm of ordinary text that gives every key exactly its value.

    With whitened keys it is ``V (Kᵀ C⁻¹ K)⁻¹ Kᵀ C⁻¹``. *Reduces to* ROME for one fact, and is what MEMIT tends to as ``text`` falls to 0.
    A layer of n columns holds n independent keys at most; beyond that values are the nearest ones.
    """

    paper: ClassVar[Paper | None] = Paper(
        title="A Unified Framework for Model Editing",
        arxiv="2403.14236",
        year=2024,
        authors="Akshat Gupta and Dev Sajnani and Gopala Anumanchipalli",
    )
    exact: ClassVar[bool] = True

    @override
    def shares(self) -> tuple[float, float]:
        return 0.5, 0.5
