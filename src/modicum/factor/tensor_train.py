"""Tensor trains."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from modicum.core.method import Paper
from modicum.core.settings import param
from modicum.factor._family import Chain
from modicum.forms.chained import Sides
from modicum.numerics.products import chain, sides


@dataclass(frozen=True, kw_only=True)
class TensorTrain(Chain):
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

    bond: int = param(12, "largest size between two tensors", between=(1, 256))

    def parts(self, weight: torch.Tensor) -> tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor], Sides]:
        """The truncated decomposition."""
        return chain(weight, self.bond), sides((weight.shape[0], weight.shape[1]))
