"""Tensor trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from modicum.core.method import Change, Method, Paper
from modicum.core.settings import param
from modicum.core.unit import Site, Stats
from modicum.forms import Chained, Dense, Form
from modicum.forms.lift import on_dense
from modicum.numerics.products import chain, sides


@dataclass(frozen=True, kw_only=True)
class TensorTrain(Method):
    """Replace a weight by a chain of a large tensor between two small ones, truncated at a bond: what ``mpo`` trains.

    The outer tensors' sides are the largest numbers up to 4 that divide rows and columns; about (bond / 16)² of the numbers where 4 divides both
    twice.

    *Shapes:* weight (rows, columns) = (i · m · p, j · n · q); left (i · j, bond), centre (bond, m · n · bond), right (bond, p · q). *Needs and
    cost:* no data; two decompositions, of (i · j, rest) and (bond · m · n, p · q). *Reduces to:* the original weight at whole bonds, 16 and more.
    *Raises:* ``SettingError`` where it comes after a step that left no dense weight.

    Example:
        >>> import torch
        >>> TensorTrain(bond=1).factor(torch.ones(16, 16)).values
        33

    """

    paper = Paper(
        "Scaling Pre-trained Language Models to Deeper via Parameter-efficient Architecture", "2303.16753", 2023,
        "Peiyu Liu and Ze-Feng Gao and Yushuo Chen and Wayne Xin Zhao and Ji-Rong Wen",
    )  # fmt: skip

    known_gaps: ClassVar[dict[str, str]] = {"permuted rows permute the answer": "rows and columns are divided by their places"}

    bond: int = param(12, "largest size between two tensors", between=(1, 256))

    def factor(self, weight: torch.Tensor) -> Form:
        """Three tensors of ``weight`` (rows, columns) in its dtype."""
        left, centre, right = (Dense(part.to(weight.dtype).contiguous()) for part in chain(weight, self.bond))
        return Chained(left, centre, right, sides((weight.shape[0], weight.shape[1])))

    def apply(self, site: Site, stats: Mapping[str, Stats], current: Mapping[str, Form]) -> Change:
        """Factor every unit of the site."""
        return Change(forms={u.name: on_dense(current[u.name], stats[u.name], lambda w, _: self.factor(w), self.key()) for u in site.units})
