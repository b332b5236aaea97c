"""Model soups."""

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
class Soup(Linear):
    """The mean of models that were fine-tuned alike with other settings; the greedy one takes in what helps on held-out data.

    ``Σ w_i W_i / Σ w_i``. With ``recipe=greedy`` the models are tried from the best to the worst, and one stays where the mean with it is at
    least as good on validation data: that takes ``--evaluate``.

    *Shapes:* tensors of one shape.

    *Needs and cost:* one multiplication for each entry of each model; the greedy recipe judges each model and each mean once.

    *Reduces to:* ``average``, for the uniform recipe.

    *Raises:* ``SettingError`` for negative weights, or weights whose sum is 0.

    *Differences from the paper:* none.

    Example:
        >>> Soup().coefficients([1.0, 1.0], torch.empty(0, 0))
        (0.0, 0.5, 0.5)

    """

    paper: ClassVar[Paper | None] = Paper(
        title="Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing inference time",
        arxiv="2203.05482",
        year=2022,
        authors="Mitchell Wortsman and Gabriel Ilharco and Samir Yitzhak Gadre and Rebecca Roelofs and Raphael Gontijo-Lopes and Ari S. Morcos and "
        "Hongseok Namkoong and Ali Farhadi and Yair Carmon and Simon Kornblith and Ludwig Schmidt",
    )
    shares: ClassVar[bool] = True
    reads_base: ClassVar[bool] = False

    recipe: str = param("uniform", "all models, or those that help on validation data", choices=("uniform", "greedy"))

    @property
    @override
    def evaluated(self) -> bool:
        return self.recipe == "greedy"

    @override
    def coefficients(self, weights: Sequence[float], gram: torch.Tensor) -> Sequence[float]:
        total = sum(weights)
        return (0.0, *(weight / total for weight in weights))
