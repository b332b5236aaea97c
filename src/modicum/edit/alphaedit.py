"""AlphaEdit: changes that lie where ordinary text has next to nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.settings import param
from modicum.edit.located import Located
from modicum.edit.normal_equations import NormalEquations, null_space


@dataclass(frozen=True, kw_only=True)
class Alphaedit(Located):
    """Keys are projected by ``P`` onto the null space of ordinary text, so ``D = (Σ v kᵀ) P (P (Σ k kᵀ + Σ earlier) P + ridge)⁻¹``.

    *Differs from the paper:* the null space is what holds at most the share ``empty`` of the text's energy, rather than singular values below a
    constant, which depends on a model's scale.
    """

    paper: ClassVar[Paper | None] = Paper(
        title="AlphaEdit: Null-Space Constrained Knowledge Editing for Language Models",
        arxiv="2410.02355",
        year=2024,
        authors="Junfeng Fang and Houcheng Jiang and Kun Wang and Yunshan Ma and Jie Shi and Xiang Wang and Xiangnan He and Tat-Seng Chua",
    )

    empty: float = param(0.02, "share of the energy of ordinary text that the null space may hold", between=(0.0, 1.0))
    ridge: float = param(0.1, "share of the mean square of the inputs that protects every direction", between=(1e-9, 1e6))

    @override
    def solved(self, new: NormalEquations, known: NormalEquations, covariance: torch.Tensor) -> torch.Tensor:
        within = null_space(covariance, self.empty)
        size = covariance.diagonal().mean().clamp(min=1e-12)
        earlier = within @ known.gram @ within
        return new.solve(earlier + self.ridge * size * torch.eye(len(covariance)), within=within)
