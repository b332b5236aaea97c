"""Layers as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.settings import param
from modicum.merge._linear import Linear


@dataclass(frozen=True, kw_only=True)
class Passthrough(Linear):
    """One model's tensors as they are: for plans that put layers of several models, or some layers twice, one after the other.

    ``scale · W``: depth up-scaling is this on a plan whose slices overlap, followed by training.

    *Shapes:* any.

    *Needs and cost:* no data; tensors are copied.

    *Reduces to:* a copy.

    *Raises:* ``SettingError`` for more than one model in a slice.

    *Differences from the paper:* which layers are taken twice is the plan's business.

    Example:
        >>> Passthrough().coefficients([1.0], torch.empty(0, 0))
        (0.0, 1.0)

    """

    paper: ClassVar[Paper | None] = Paper(
        title="SOLAR 10.7B: Scaling Large Language Models with Simple yet Effective Depth Up-Scaling",
        arxiv="2312.15166",
        year=2023,
        authors="Dahyun Kim and Chanjun Park and Sanghoon Kim and Wonsung Lee and Wonho Song and Yunsu Kim and Hyeonwoo Kim and Yungi Kim and "
        "Hyeonju Lee and Jihoo Kim and Changbae Ahn and Seonghoon Yang and Sukyung Lee and Hyunbyung Park and Gyoungjin Gim and Mikyoung Cha and "
        "Hwalsuk Lee and Sunghun Kim",
    )
    most: ClassVar[int] = 1
    reads_base: ClassVar[bool] = False

    scale: float = param(1.0, "what every tensor is multiplied by", between=(-1e6, 1e6))

    @override
    def coefficients(self, weights: Sequence[float], gram: torch.Tensor) -> Sequence[float]:
        return (0.0, self.scale * weights[0])
