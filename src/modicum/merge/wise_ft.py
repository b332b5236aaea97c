"""WiSE-FT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from modicum.core.method import Paper
from modicum.merge._linear import Linear


@dataclass(frozen=True, kw_only=True)
class WiseFt(Linear):
    """One fine-tuned model and its base, interpolated: what was learnt, without what was forgotten.

    ``(1 - w) W_0 + w W_1``. Which ``w`` is best is a matter of data: ``--evaluate`` draws the curve. BANG is this of a model that was fine-tuned
    with smoothed labels or mixed inputs, so that its confidence is that of the base.

    *Shapes:* tensors of one shape.

    *Needs and cost:* no data; two multiplications an entry.

    *Reduces to:* the base at weight 0, the model at 1.

    *Raises:* ``SettingError`` for more than one model.

    *Differences from the paper:* all weights are interpolated, heads as well.

    Example:
        >>> WiseFt().coefficients([0.25], torch.empty(0, 0))
        (0.75, 0.25)

    """

    paper: ClassVar[Paper | None] = Paper(
        title="Robust Fine-Tuning of Zero-Shot Models",
        arxiv="2109.01903",
        year=2021,
        authors="Mitchell Wortsman and Gabriel Ilharco and Jong Wook Kim and Mike Li and Simon Kornblith and Rebecca Roelofs and "
        "Raphael Gontijo-Lopes and Hannaneh Hajishirzi and Ali Farhadi and Hongseok Namkoong and Ludwig Schmidt",
    )
    most: ClassVar[int] = 1
    weight: ClassVar[float] = 0.5

    @override
    def coefficients(self, weights: Sequence[float], gram: torch.Tensor) -> Sequence[float]:
        return (1.0 - weights[0], weights[0])
