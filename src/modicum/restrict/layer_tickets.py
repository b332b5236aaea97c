"""Layer lottery tickets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from typing_extensions import override

from modicum.core.errors import SettingError
from modicum.core.method import Paper
from modicum.core.parametrization import Revision, Start, State, Step
from modicum.core.settings import param
from modicum.forms import Dense, Sparse
from modicum.restrict._family import Restriction, Shapes, beginning
from modicum.restrict._shared import role

if TYPE_CHECKING:
    from modicum.forms import Form


@dataclass(frozen=True, kw_only=True)
class LayerTickets(Restriction):
    """Of blocks beside which their input goes on, those that the loss feels least at the start are left out, and the others are trained.

    A block's score is the mean of ``|w · ∂L/∂w|`` over its weights before the first update. Blocks are told by the first number in the names of
    weights; of those whose weights have the same places and shapes as most others', ``keep`` stay. What is left out is zero, and costs nothing.

    *Shapes:* weight (rows, columns), trained; (0, columns) where its block is left out.

    *Needs and cost:* one pass over some batches with gradients; the numbers of the blocks that stay, and their products.

    *Reduces to:* dense training with ``keep=1``.

    *Raises:* ``SettingError`` where nothing was scored before training.

    *Differences from the paper:* scores are those of the loss's first order; blocks are zeros where they were, not taken out of the module.

    Example:
        >>> LayerTickets(keep=0.5).looks
        1

    """

    paper: ClassVar[Paper | None] = Paper(
        title="When Layers Play the Lottery, all Tickets Win at Initialization",
        arxiv="2301.10835",
        year=2023,
        authors="Artur Jordao and George Correa de Araujo and Helena de Almeida Maia and Helio Pedrini",
    )

    keep: float = param(0.5, "share of the blocks that stay", between=(1e-6, 1.0), dial=True)

    @property
    @override
    def looks(self) -> int:
        """One pass."""
        return 1

    @override
    def density(self, step: Step) -> float:
        """The share of the blocks."""
        return self.keep

    def left_out(self, scores: Mapping[str, float], shapes: Shapes) -> set[str]:
        """Units of the blocks of least mean score over their weights, as many as ``keep`` says of those that are alike."""
        blocks: dict[int, dict[str, str]] = {}
        for unit in shapes:
            name, block = role(unit)
            if name != unit:
                blocks.setdefault(block, {})[name] = unit
        alike: dict[tuple, list[int]] = {}
        for block, units in blocks.items():
            alike.setdefault(tuple(sorted((name, shapes[unit]) for name, unit in units.items())), []).append(block)
        candidates = max(alike.values(), key=len, default=[])
        size = lambda units: sum(math.prod(shapes[unit]) for unit in units)
        worth = {block: math.fsum(scores[unit] for unit in blocks[block].values()) / size(blocks[block].values()) for block in candidates}
        stay = max(1, round(self.keep * len(candidates)))
        gone = sorted(candidates, key=lambda block: (worth[block], -block))[: len(candidates) - stay]
        return {unit for block in gone for unit in blocks[block].values()}

    @override
    def begin(self, start: Start) -> State:
        """The weight."""
        return State({"weight": beginning(start)}, {"rows": torch.tensor(start.shape[0]), "looked": torch.tensor(False)})

    @override
    def watches(self, step: Step) -> bool:
        """Before training."""
        return step.number == 0

    @override
    def revise(self, states: Mapping[str, State], gradients: Mapping[str, torch.Tensor], budget: int, step: Step) -> Revision | None:
        """Before the first update blocks go."""
        if step.number > 0 and self.keep < 1 and (blind := [unit for unit, state in states.items() if not bool(state["looked"])]):
            raise SettingError(f"layer_tickets: must see gradients before it is trained, has not at {blind[0]}. Call scored first.")
        if step.number != 0 or not gradients:
            return None
        shapes = {unit: (int(state["rows"]), state["weight"].shape[1]) for unit, state in states.items()}
        scores = {unit: float((state["weight"].detach() * gradients[unit]).abs().sum()) for unit, state in states.items()}
        gone, looked = self.left_out(scores, shapes), {"looked": torch.tensor(True)}
        emptied = lambda unit, state: {"weight": state["weight"].detach()[:0]} if unit in gone else None
        return Revision({unit: state.having(emptied(unit, state), looked) for unit, state in states.items()})

    @override
    def weight(self, base: torch.Tensor | None, state: State, step: Step) -> torch.Tensor:
        """Itself, or zeros."""
        held = state["weight"]
        return held if len(held) else held.new_zeros(int(state["rows"]), held.shape[1]) + held.sum()

    @override
    def form(self, state: State) -> Form:
        """Whole, or nothing."""
        held = state["weight"].detach()
        return Dense(held.clone()) if len(held) else Sparse(held.reshape(-1), (int(state["rows"]), held.shape[1]), seed=0)

    @override
    def outlines(self, shapes: Shapes) -> dict[str, Form]:
        """As if later blocks went."""
        gone = self.left_out(dict.fromkeys(shapes, 1.0), shapes)
        empty = lambda shape: Sparse(torch.zeros(0), shape, seed=0)
        return {unit: empty(shape) if unit in gone else Dense(torch.zeros(shape)) for unit, shape in shapes.items()}
