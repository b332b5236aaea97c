"""The factor family: a weight replaced by factors of it, unit by unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from modicum.core.method import Change, Method
from modicum.core.unit import Site, Stats
from modicum.forms import Chained, Dense, Form
from modicum.forms.chained import Sides
from modicum.forms.lift import on_dense


@dataclass(frozen=True, kw_only=True)
class Factorization(Method):
    """Needs no data; a file says ``factor`` of one weight."""

    def factor(self, weight: torch.Tensor) -> Form:
        """What stands for ``weight`` (rows, columns), in its dtype."""
        raise NotImplementedError

    def apply(self, site: Site, stats: Mapping[str, Stats], current: Mapping[str, Form]) -> Change:
        """Factor every unit of the site."""
        return Change(forms={u.name: on_dense(current[u.name], stats[u.name], lambda w, _: self.factor(w), self.key()) for u in site.units})


@dataclass(frozen=True, kw_only=True)
class Chain(Factorization):
    """Factors are tensors of a chain over sides that divide the weight's; a file says its ``parts``."""

    known_gaps: ClassVar[dict[str, str]] = {"permuted rows permute the answer": "rows and columns are divided by their places"}

    def parts(self, weight: torch.Tensor) -> tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor], Sides]:
        """Left, central and right tensor of ``weight`` (rows, columns), each a matrix, and the sides that they are over."""
        raise NotImplementedError

    def factor(self, weight: torch.Tensor) -> Form:
        """The chain of ``weight`` (rows, columns) in its dtype."""
        tensors, sides = self.parts(weight)
        left, centre, right = (Dense(part.to(weight.dtype).contiguous()) for part in tensors)
        return Chained(left, centre, right, sides)
