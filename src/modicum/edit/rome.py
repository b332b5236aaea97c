"""ROME: one fact as one equality in one layer; facts follow one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from modicum.core.method import Paper
from modicum.edit.editor import Past
from modicum.edit.facts import Fact
from modicum.edit.located import Located
from modicum.edit.taught import Taught


@dataclass(frozen=True, kw_only=True)
class Rome(Located):
    """The least change of rank one that gives the subject's key its value: ``v (C⁻¹ k)ᵀ / (kᵀ C⁻¹ k)``, with ``C`` of ordinary text.

    *Needs and cost:* a subject in each fact; ``steps`` forward and backward passes per fact, one fact after the other.
    """

    paper: ClassVar[Paper | None] = Paper(
        title="Locating and Editing Factual Associations in GPT",
        arxiv="2202.05262",
        year=2022,
        authors="Kevin Meng and David Bau and Alex Andonian and Yonatan Belinkov",
    )
    exact: ClassVar[bool] = True

    @override
    def shares(self) -> tuple[float, float]:
        return 0.5, 0.5

    @override
    def teach(self, taught: Taught, facts: Sequence[Fact], past: Past) -> Past:
        for fact in facts:
            past = super().teach(taught, [fact], past)
        return past
