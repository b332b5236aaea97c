"""BitFit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from modicum.adapt._family import AddedAdapter
from modicum.core.method import Paper
from modicum.core.unit import Unit


@dataclass(frozen=True, kw_only=True)
class Bitfit(AddedAdapter):
    """Biases alone are trained: a thousandth of a model's numbers, in a model that has them.

    ``b + change`` for each bias, as ``{"*.bias": "shift"}`` says it.

    *Shapes:* change (1, entries).

    *Needs and cost:* no statistics; as many trained numbers as the biases have.

    *Reduces to:* the base with the change at zero, where training begins.

    *Raises:* ``SettingError`` for a model without biases, whose vectors ``norms`` trains.

    *Differences from the paper:* what else is trained beside the biases, such as a new head, is the plan's to say.

    Example:
        >>> str(Bitfit())
        'bitfit'

    """

    paper: ClassVar[Paper | None] = Paper(
        title="BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models",
        arxiv="2106.10199",
        year=2021,
        authors="Elad Ben Zaken and Shauli Ravfogel and Yoav Goldberg",
    )
    rate: ClassVar[float] = 4e-2

    @override
    def means(self, unit: Unit) -> bool:
        """Vectors by the name of bias."""
        return len(unit.stored_shape) == 1 and unit.parameter.rpartition(".")[2].startswith("bias")
