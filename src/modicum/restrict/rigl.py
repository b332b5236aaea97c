"""RigL."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.parametrization import Revision, Start, State, Step
from modicum.core.settings import param
from modicum.forms import Masked
from modicum.restrict._family import Restriction, beginning

if TYPE_CHECKING:
    from modicum.forms import Form


@dataclass(frozen=True, kw_only=True)
class Rigl(Restriction):
    """A sparse weight whose smallest entries give their places to those where the loss falls fastest.

    Every ``every`` steps until the share ``until`` of training, a share of a weight's entries, ``renewed`` falling along a cosine, is dropped by
    magnitude, and as many places are taken that have the largest gradients; new entries begin at zero.

    *Shapes:* values (entries,) at places (entries,) of the matrix, row by row.

    *Needs and cost:* the whole weight's gradient on the steps that renew; entries trained numbers.

    *Reduces to:* training under a fixed mask with ``renewed=0``.

    *Raises:* nothing of its own.

    *Differences from the paper:* none known.

    Example:
        >>> Rigl(keep=0.1).watches(Step(100, 1000))
        True

    """

    paper: ClassVar[Paper | None] = Paper(
        title="Rigging the Lottery: Making All Tickets Winners",
        arxiv="1911.11134",
        year=2019,
        authors="Utku Evci and Trevor Gale and Jacob Menick and Pablo Samuel Castro and Erich Elsen",
    )

    keep: float = param(0.1, "share of all weights that is kept", between=(1e-6, 1.0), dial=True)
    layers: str = param("erk", "how the share is divided over layers", choices=("uniform", "erk"))
    renewed: float = param(0.3, "share of a layer's entries that the first renewal moves", between=(0.0, 1.0))
    every: int = param(100, "updates from one renewal to the next", between=(1, 10**9))
    until: float = param(0.75, "share of training after which places stay", between=(0.0, 1.0))

    @override
    def common(self, shapes: Mapping[str, tuple[int, int]], chance: torch.Generator, seed: int) -> State | None:
        """How many entries each weight has."""
        counts = self._uniform(shapes) if self.layers == "uniform" else self._erk(shapes)
        return State({}, {f"entries of {unit}": torch.tensor(count) for unit, count in counts.items()})

    def _uniform(self, shapes: Mapping[str, tuple[int, int]]) -> dict[str, int]:
        return {unit: max(1, round(self.keep * rows * columns)) for unit, (rows, columns) in shapes.items()}

    def _erk(self, shapes: Mapping[str, tuple[int, int]]) -> dict[str, int]:
        """Densities in proportion to (rows + columns) / (rows · columns), those above one being whole."""
        wanted, whole = self.keep * sum(math.prod(shape) for shape in shapes.values()), set[str]()
        while True:
            rest = {unit: shape for unit, shape in shapes.items() if unit not in whole}
            left = wanted - sum(math.prod(shapes[unit]) for unit in whole)
            factor = max(0.0, left) / max(1, sum(sum(shape) for shape in rest.values()))
            beyond = {unit for unit, shape in rest.items() if factor * sum(shape) >= math.prod(shape)}
            if not beyond:
                break
            whole |= beyond
        return {unit: math.prod(s) if unit in whole else max(1, round(factor * sum(s))) for unit, s in shapes.items()}

    @override
    def begin(self, start: Start) -> State:
        """Random places, with the entries that the weight has there."""
        count, dense = int(start.common[f"entries of {start.unit}"]), beginning(start) if start.common else torch.empty(0)  # type: ignore[index]
        places = torch.randperm(math.prod(start.shape), generator=start.chance)[:count].sort().values
        return State({"values": dense.reshape(-1)[places]}, {"places": places, "shape": torch.tensor(start.shape)}, start.common)

    @override
    def weight(self, base: torch.Tensor | None, state: State, step: Step) -> torch.Tensor:
        """The values at their places."""
        rows, columns = state["shape"].tolist()
        flat = state["values"].new_zeros(rows * columns).index_copy(0, state["places"], state["values"])
        return flat.reshape(rows, columns)

    @override
    def form(self, state: State) -> Form:
        """A mask and what it keeps."""
        rows, columns = state["shape"].tolist()
        mask = torch.zeros(rows * columns, dtype=torch.bool).index_fill(0, state["places"].cpu(), True)
        return Masked(state["values"], mask.reshape(rows, columns))

    @override
    def watches(self, step: Step) -> bool:
        """On the steps that renew."""
        return self.renewed > 0 and step.number % self.every == 0 and 0 < step.number < self.until * step.total

    @override
    def revise(self, states: Mapping[str, State], gradients: Mapping[str, torch.Tensor], budget: int, step: Step) -> Revision | None:
        """Places renewed in each weight."""
        if not gradients:
            return None
        share = self.renewed / 2 * (1 + math.cos(math.pi * step.number / max(1.0, self.until * step.total)))
        revised, kept = {}, {}
        for unit, gradient in gradients.items():
            state = states[unit]
            values, places = state["values"].detach(), state["places"]
            moved = min(int(share * len(values)), gradient.numel() - len(values))
            stays = torch.ones(len(values), dtype=torch.bool).index_fill(0, values.abs().argsort(stable=True)[:moved], False)
            free = gradient.reshape(-1).abs().index_fill(0, places, -1.0)
            grown = free.argsort(descending=True, stable=True)[:moved]
            order = torch.cat([places[stays], grown]).argsort()
            revised[unit] = state.having(
                {"values": torch.cat([values[stays], values.new_zeros(moved)])[order]}, {"places": torch.cat([places[stays], grown])[order]}
            )
            kept[unit] = {"values": torch.cat([stays.nonzero()[:, 0], torch.full((moved,), -1)])[order]}
        return Revision(revised, kept)
