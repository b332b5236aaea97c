"""SNIP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.parametrization import State
from modicum.restrict._family import Scored


@dataclass(frozen=True, kw_only=True)
class Snip(Scored):
    """Before training all entries go but those whose absence the loss would feel most, which alone are trained.

    The score of an entry is ``|w · ∂L/∂w|``, and one threshold serves all layers.

    *Shapes:* values (entries,) at places (entries,) of the matrix, row by row.

    *Needs and cost:* one pass over some batches with the whole weights' gradients; entries trained numbers.

    *Reduces to:* dense training with ``keep=1``.

    *Raises:* ``SettingError`` for a share below one weight per row, and where nothing was scored before training.

    *Differences from the paper:* none known.

    Example:
        >>> str(Snip(keep=0.2))
        'snip keep=0.2'

    """

    paper: ClassVar[Paper | None] = Paper(
        title="SNIP: Single-shot Network Pruning based on Connection Sensitivity",
        arxiv="1810.02340",
        year=2018,
        authors="Namhoon Lee and Thalaiyasingam Ajanthan and Philip H. S. Torr",
    )

    @override
    def scores(self, state: State, gradient: torch.Tensor) -> torch.Tensor:
        """How much the loss feels each entry."""
        return (state["values"].detach() * gradient.reshape(-1)).abs()
