"""Rows in turns: those of later turns make up for the errors of earlier ones, as far as the output feels them together.

With the covariance Γ of output gradients the harm of a weight error E is ``tr(Γ E H Eᵀ)``. With ``Γ = M D Mᵀ`` (M unit upper triangular, D
diagonal), as columns have it in ``numerics/solver.py``, it is ``Σ_i D_i ‖E_i + Σ_{j<i} M_ji E_j‖²`` in the metric of H: row i, given the rows
decided before it, is best near ``W_i + Σ_{j<i} M_ji E_j``. So rows of one turn are made as ever, at once, on other targets; what they have in
common among themselves counts as nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch

from modicum.forms.integer import Integer, stacked
from modicum.numerics.gram import add_product
from modicum.numerics.solver import factorize

# Share of the mean of the gradients' squares that each row is felt by itself.
_DAMPING = 0.1


def coupled(
    weights: Sequence[torch.Tensor], felts: Sequence[torch.Tensor | None], make: Callable[[list[torch.Tensor]], Sequence[Integer]], turns: int = 4
) -> list[Integer]:  # fmt: skip
    """What ``make`` gives for float32 ``weights`` (rows, columns), turn by turn of their rows, where it is known how these are ``felt`` (rows, rows)
    together; the others are made whole in the first turn. Neighbours, of a head of an attention say, go in different turns. Rows must not share a
    scale.

    *Needs and cost:* rows³ / 3 and rows² · columns multiply-adds a weight; as many calls of ``make`` as turns.
    """
    each = [_Rows(weight, felt, turns) for weight, felt in zip(weights, felts)]
    for turn in range(max(one.turns for one in each)):
        moving = [one for one in each if turn < one.turns]
        for one, form in zip(moving, make([one.target(turn) for one in moving])):
            one.take(turn, form)
    return [one.form() for one in each]


class _Rows:
    """A weight whose rows are in the order of their turns."""

    def __init__(self, weight: torch.Tensor, felt: torch.Tensor | None, turns: int):
        self.turns = 1 if felt is None else min(turns, len(weight))
        places = [torch.arange(turn, len(weight), self.turns) for turn in range(self.turns)]
        self.order, ends = torch.cat(places), torch.tensor([0, *map(len, places)]).cumsum(0).tolist()
        self.spans = [slice(low, high) for low, high in itertools.pairwise(ends)]
        self.coupling = None if felt is None else factorize(felt, _DAMPING, self.order).coupling
        self.weight = weight if felt is None else weight[self.order]
        self.error = torch.zeros_like(self.weight)
        self.forms: list[Integer] = []

    def target(self, turn: int) -> torch.Tensor:
        """What the rows of a turn are best near."""
        rows, target = self.spans[turn], self.weight[self.spans[turn]].clone()
        if self.coupling is not None and turn:
            add_product(target, self.coupling[: rows.start, rows].contiguous(), self.error[: rows.start])
        return target

    def take(self, turn: int, form: Integer) -> None:
        """Keep what the rows of a turn have become."""
        self.forms.append(form)
        self.error[self.spans[turn]] = self.weight[self.spans[turn]] - form.dense().float()

    def form(self) -> Integer:
        """All rows, in their own order."""
        if self.turns == 1:
            return self.forms[0]
        whole, back = stacked(self.forms, shared=False), self.order.argsort()
        zero = None if whole.zero is None else whole.zero[back]
        return Integer(whole.codes[back], whole.scale[back], zero, whole.bits, whole.group)
