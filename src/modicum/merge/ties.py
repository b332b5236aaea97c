"""TIES."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.settings import param
from modicum.merge._family import At, Largest, Survey, counted
from modicum.merge._pipeline import Pipeline, at_least, sizes


@dataclass(frozen=True, kw_only=True)
class Ties(Pipeline):
    """Of each model's change the largest entries stay, each entry elects a sign, and the models that agree are averaged.

    ``W_0 + scale · Σ w_i d_i / Σ w_i`` over models whose change ``d_i`` is kept and has the sign of ``Σ w_i d_i`` there. Weights are shares of
    one another: what the change is multiplied by is ``scale``. With ``trim=model`` the share is taken of all of a model's entries together,
    found by counting, not sorting.

    *Shapes:* tensors of one shape.

    *Needs and cost:* no data; the models are read twice, once to find from which size on entries stay.

    *Reduces to:* ``average`` of what agrees, at density 1.

    *Raises:* ``SettingError`` for weights that are no shares.

    *Differences from the paper:* all entries of exactly the size at which the share ends stay. ``compat=mergekit`` trims by tensor, rounds the
    count of a share down, and has an entry whose changes cancel out elect plus.

    Example:
        >>> base, one, other = torch.zeros(3), torch.tensor([2.0, 1.0, 0.0]), torch.tensor([-1.0, 3.0, 0.0])
        >>> Ties(density=1.0).combine(base, [one, other], [1.0, 1.0], At("w", (3,), (1.0, 1.0)))
        tensor([2., 2., 0.])

    """

    paper: ClassVar[Paper | None] = Paper(
        title="TIES-Merging: Resolving Interference When Merging Models",
        arxiv="2306.01708",
        year=2023,
        authors="Prateek Yadav and Derek Tam and Leshem Choshen and Colin Raffel and Mohit Bansal",
    )
    shares: ClassVar[bool] = True

    density: float = param(0.2, "share of each model's entries that stays", between=(0.0, 1.0))
    trim: str = param("model", "what the share is taken of", choices=("model", "tensor"))
    compat: str = param("none", "whose semantics hold where they differ from the paper's", choices=("none", "mergekit"))

    @property
    @override
    def scope(self) -> str:
        return "tensor" if self.compat == "mergekit" else self.trim

    @override
    def survey(self, models: int, entries: int) -> Survey:
        if self.density == 1:
            return None
        count = max(1, int(self.density * entries)) if self.compat == "mergekit" and self.density else counted(self.density, entries)
        return (yield Largest(sizes, (count,)))[:, 0]

    @override
    def trimmed(self, difference: torch.Tensor, model: int, at: At) -> torch.Tensor | None:
        return None if at.known is None else at_least(difference, float(at.known[model]))

    @override
    def elected(self, total: torch.Tensor) -> torch.Tensor:
        return total.sign_() if self.compat != "mergekit" else total.ge_(0).mul_(2).sub_(1)
