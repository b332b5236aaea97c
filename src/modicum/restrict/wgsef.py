"""Weighted group sparse envelopes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.parametrization import Revision, Start, State, Step
from modicum.core.settings import param
from modicum.restrict._family import Restriction, Shapes, beginning, masked

if TYPE_CHECKING:
    from modicum.forms import Form


@dataclass(frozen=True, kw_only=True)
class Wgsef(Restriction):
    """Rows of a weight are trained towards exactly ``keep`` of them: after each update those of least norm shrink, and in the end they are zero.

    The step towards the envelope of "at most k rows": the k rows of largest norm stay, the others are multiplied by ``1 - strength · share`` of
    training; from the share ``until`` on they are zero, and their number is exact.

    *Shapes:* latent (rows, columns), trained.

    *Needs and cost:* no statistics; rows · columns trained numbers, of which the rows that stay are stored.

    *Reduces to:* dense training with ``keep=1``.

    *Raises:* nothing of its own.

    *Differences from the paper:* groups are rows of equal weight; the proximal step of the envelope is taken in its limit of large strength, where
    the largest groups do not shrink.

    Example:
        >>> str(Wgsef(keep=0.5))
        'wgsef keep=0.5'

    """

    cuts_rows: ClassVar[bool] = True
    paper: ClassVar[Paper | None] = Paper(
        title="Learning k-Level Structured Sparse Neural Networks Using Group Envelope Regularization",
        arxiv="2212.12921",
        year=2022,
        authors="Yehonathan Refael and Iftach Arbel and Wasim Huleihel",
    )

    keep: float = param(0.5, "share of the rows that stay", between=(1e-6, 1.0), dial=True)
    strength: float = param(0.1, "how much rows shrink in an update near the end", between=(0.0, 1.0))
    until: float = param(0.75, "share of training after which the others are zero", between=(0.0, 1.0))

    @override
    def begin(self, start: Start) -> State:
        """The weight."""
        return State({"latent": beginning(start)}, base=start.base)

    def rows(self, latent: torch.Tensor) -> torch.Tensor:
        """Which rows (rows,) are the largest."""
        count = max(1, round(self.keep * len(latent)))
        largest = latent.norm(dim=1).argsort(descending=True, stable=True)[:count]
        return torch.zeros(len(latent), dtype=torch.bool).index_fill(0, largest, True)

    @override
    def density(self, step: Step) -> float:
        """All, until rows are zero."""
        return self.keep if step.share >= self.until else 1.0

    @override
    def weight(self, base: torch.Tensor | None, state: State, step: Step) -> torch.Tensor:
        """The weight, of its largest rows alone at the end."""
        latent = state["latent"]
        return latent if step.share < self.until else latent * self.rows(latent.detach())[:, None]

    @override
    def revise(self, states: Mapping[str, State], gradients: Mapping[str, torch.Tensor], budget: int, step: Step) -> Revision | None:
        """The smaller rows shrink, and are zero from some step on."""
        if step.number < 1 or self.keep == 1:
            return None
        gone, before = step.share >= self.until, Step(step.number - 1, step.total).share >= self.until
        factor, revised, moments = 0.0 if gone else 1 - self.strength * step.share, dict[str, State](), dict[str, dict[str, torch.Tensor]]()
        for unit, state in states.items():
            latent = state["latent"].detach()
            rows = self.rows(latent)[:, None]
            revised[unit] = state.having({"latent": torch.where(rows, latent, latent * factor)})
            if gone and not before:
                places = torch.arange(latent.numel()).reshape(latent.shape)
                moments[unit] = {"latent": torch.where(rows, places, -1).reshape(-1)}
        return Revision(revised, moments)

    @override
    def form(self, state: State) -> Form:
        """The rows that stay, under a mask."""
        latent = state["latent"].detach()
        rows = self.rows(latent)
        return masked(latent[rows].reshape(-1), rows[:, None].expand(latent.shape).contiguous())

    @override
    def outlines(self, shapes: Shapes) -> dict[str, Form]:
        """As many rows."""
        return {unit: self.form(State({"latent": torch.zeros(shape)})) for unit, shape in shapes.items()}
