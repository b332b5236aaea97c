"""Held."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from typing_extensions import override

from modicum.core.errors import SettingError
from modicum.core.method import Paper
from modicum.core.parametrization import Start, State, Step
from modicum.core.settings import param
from modicum.forms import Masked
from modicum.restrict._family import beginning
from modicum.restrict._healer import Healer, rounded, size_of, straight

if TYPE_CHECKING:
    from modicum.forms import Form


@dataclass(frozen=True, kw_only=True)
class Held(Healer):
    """The numbers of what is stored are trained where they stand; masks, codes, shapes and bytes stay to the bit.

    Values that a mask left, scales of a grid, factors of a product: each is ``before + size · step`` rounded to its stored dtype, where ``size`` is
    the magnitude of a scale, and the root mean square of all numbers of another tensor, so that one learning rate suits all. With ``rank`` what is
    added to a mask's values, or to a whole weight, is a product of thin matrices, which merges into them.

    *Shapes:* a step of the shape of each number's tensor; with ``rank`` left (rows, rank) and right (rank, columns) in its place.

    *Needs and cost:* no statistics; as many trained numbers as are stored, or rank · (rows + columns). The weight is made, once exactly and once
    for the gradient.

    *Reduces to:* what is stored with all steps at zero, where training begins.

    *Raises:* ``SettingError`` for a form that holds no such numbers.

    *Differences from the paper:* the product under a mask is PERP's MaskLoRA; numbers of other forms are not in the paper.

    Example:
        >>> str(Held(rank=4))
        'held rank=4'

    """

    paper: ClassVar[Paper | None] = Paper(
        title="PERP: Rethinking the Prune-Retrain Paradigm in the Era of LLMs",
        arxiv="2312.15230",
        year=2023,
        authors="Max Zimmer and Megi Andoni and Christoph Spiegel and Sebastian Pokutta",
    )

    rank: int = param(
        0, "rank of the product that is added under a mask or to a whole weight, 0: each number is trained", between=(0, 65536)
    )

    @override
    def suits(self, stored: Form) -> bool:
        return bool(stored.movable())

    @override
    def begin(self, start: Start) -> State:
        """Steps at zero; a weight that is not compressed is held at the mask of its entries that are not zero."""
        stored = start.stored
        if stored is None:
            weight = beginning(start).to(torch.float32 if start.base is None else start.base.dtype)
            stored = Masked.of(weight, weight != 0)
        trained, sizes = {}, {}
        for name, tensor in stored.movable().items():
            if self.rank and _leaf(stored, name).kind in ("masked", "dense"):
                (rows, columns), rank = _leaf(stored, name).shape, min(self.rank, *start.shape)
                bound = 1 / math.sqrt(max(1, columns))
                trained[f"{name} left"] = torch.zeros(rows, rank)
                trained[f"{name} right"] = torch.empty(rank, columns).uniform_(-bound, bound, generator=start.chance)
            elif tensor.numel():
                trained[name] = torch.zeros(tensor.shape)
            sizes[f"{name} size"] = size_of(name, tensor)
        if not trained:
            raise SettingError(f"{start.unit}: must hold numbers that may move to be held, {stored.kind} holds none. Train norms alone.")
        return State(trained, sizes, base=start.base, stored=stored)

    def _numbers(self, state: State) -> dict[str, torch.Tensor]:
        """Numbers as they stand, float32, differentiable."""
        assert state.stored is not None
        return {name: before.float() + self._moved(state, name) for name, before in state.stored.movable().items()}

    def _moved(self, state: State, name: str) -> Any:
        if name in state.trained:
            return state[f"{name} size"] * state[name]
        if f"{name} left" not in state.trained:
            return 0.0
        assert state.stored is not None
        leaf, product = _leaf(state.stored, name), state[f"{name} size"] * (state[f"{name} left"] @ state[f"{name} right"])
        return product[leaf.mask] if isinstance(leaf, Masked) else product

    @override
    def weight(self, base: torch.Tensor | None, state: State, step: Step) -> torch.Tensor:
        """The exact value of what is stored, with the gradient of its numbers before they are rounded."""
        assert state.stored is not None
        numbers = self._numbers(state)
        return straight(state.stored.having(numbers).value(), rounded(state.stored, numbers).dense().float())

    @override
    def form(self, state: State) -> Form:
        """What was stored, with the numbers as they stand."""
        assert state.stored is not None
        return rounded(state.stored, self._numbers(state))


def _leaf(form: Any, name: str) -> Form:
    """The part of a form whose number has this name."""
    head, dot, rest = name.partition(".")
    return form if not dot else _leaf(form.parts[int(head)] if head.isdigit() else form.inner, rest)
