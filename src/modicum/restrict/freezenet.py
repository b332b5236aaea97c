"""FreezeNet."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.parametrization import Start, State, Step
from modicum.forms import Sum
from modicum.forms.leaves import Seeded
from modicum.restrict._family import Scored, Shapes, sparse

if TYPE_CHECKING:
    from modicum.forms import Form


@dataclass(frozen=True, kw_only=True)
class Freezenet(Scored):
    """The entries that the loss feels most are trained, and all others stay at the random numbers that they began with.

    The score is SNIP's, ``|w · ∂L/∂w|``. Numbers are drawn from a seed, so a file holds the seed, a mask, and what was learnt at its places.

    *Shapes:* values (entries,) at places (entries,): what is added to the random numbers there; random (rows, columns).

    *Needs and cost:* one pass over some batches with the whole weights' gradients; entries trained numbers, dense products.

    *Reduces to:* dense training of random numbers with ``keep=1``.

    *Raises:* ``SettingError`` for a share below one weight per row, and where nothing was scored before training.

    *Differences from the paper:* numbers are uniform in ±1/√columns, which a reader draws again on any machine.

    Example:
        >>> Freezenet(keep=0.01).density(Step())
        1.0

    """

    draws: ClassVar[bool] = True
    paper: ClassVar[Paper | None] = Paper(
        title="FreezeNet: Full Performance by Reduced Storage Costs",
        arxiv="2011.14087",
        year=2020,
        authors="Paul Wimmer and Jens Mehnert and Alexandru Condurache",
    )

    @override
    def begin(self, start: Start) -> State:
        """Nothing learnt at all places yet."""
        bound = 1 / math.sqrt(start.shape[1])
        drawn = {"random": Seeded(start.seed, bound, start.shape, torch.float32).value(), "seed": torch.tensor(start.seed)}
        return sparse(torch.zeros(start.shape), torch.arange(math.prod(start.shape)), start.common).having(frozen=drawn)

    @override
    def density(self, step: Step) -> float:
        """Random numbers are multiplied as all others."""
        return 1.0

    @override
    def weight(self, base: torch.Tensor | None, state: State, step: Step) -> torch.Tensor:
        """Random numbers, and what was learnt."""
        return state["random"] + super().weight(base, state, step)

    @override
    def scores(self, state: State, gradient: torch.Tensor) -> torch.Tensor:
        """How much the loss feels each entry."""
        return (state["random"] * gradient).abs()

    @override
    def form(self, state: State) -> Form:
        """A seed, a mask, and what was learnt."""
        rows, columns = state["shape"].tolist()
        learnt = super().form(state)
        return Sum((Seeded(int(state["seed"]), 1 / math.sqrt(columns), (rows, columns), learnt.dtype), learnt))

    @override
    def outlines(self, shapes: Shapes) -> dict[str, Form]:
        """A mask and its values."""
        made = super().outlines(shapes)
        return {unit: Sum((Seeded(0, 1.0, form.shape, form.dtype), form)) for unit, form in made.items()}
