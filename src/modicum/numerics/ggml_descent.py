"""Codes, scales and minima of llama.cpp's blocks moved to their best in turn, given how inputs go together.

As ``numerics/descent.py`` does on free grids. With the weight error ``E = W - Q`` and the covariance H the loss is ``tr(E H Eᵀ)``, its gradient
``G = E H``. Any number that stands once in many weights, ``Q = ... + t V``, is best at ``t + (V · G) / (V H Vᵀ)`` while all others stay: a whole
number goes to the nearest whole one, a step to the nearest float16. No move makes the loss larger, but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from modicum.core.blocks import Blocks, spans
from modicum.core.finite import finite
from modicum.numerics.ggml_held import Held
from modicum.numerics.ggml_search import divided, half, whole
from modicum.numerics.gram import add_product

# Columns moved one after the other before the gradients of those around them follow, and before all others' do: whole blocks of any type.
_LEAF, _PIECE = 32, 256


def descend(weight: torch.Tensor, held: Held, moment: torch.Tensor | Blocks, damping: float, sweeps: int) -> torch.Tensor:
    """Move what ``held`` stands for towards float32 ``weight`` (rows, columns) in so many sweeps; the loss of each row (rows,).

    The covariance is ``moment`` plus ``damping`` times its mean diagonal. *Needs and cost:* rows · columns² multiply-adds to begin with and in
    each sweep; 16 bytes a weight.
    """
    with np.errstate(all="ignore"):  # as in torch: what is not finite is told where a form is looked at
        descent = _Descent(weight, held, moment, damping)
        if finite(descent.gradient):
            for _ in range(sweeps):
                descent.sweep()
        return descent.loss()


class _Descent:
    def __init__(self, weight: torch.Tensor, held: Held, moment: torch.Tensor | Blocks, damping: float):
        self.held, self.moment = held, moment
        diagonal = moment.diagonal().float()
        mean = float(diagonal.double().mean())
        base = mean if mean > 0 else 1.0
        self.ridge = damping * base
        self.curvature = (torch.where(diagonal > 0, diagonal, base) + self.ridge).tolist()
        self.error = weight.T - held.values()
        self.gradient = self._felt()

    def _felt(self) -> torch.Tensor:
        found = self.error * self.ridge
        for columns, square in spans(self.moment):
            add_product(found[columns], square, self.error[columns])
        return found

    def loss(self) -> torch.Tensor:
        """``E H Eᵀ`` of each row."""
        return _summed(self.error.double() * self.gradient)

    def sweep(self) -> None:
        """Move every code, and whatever belongs to whole groups or blocks of a piece once its codes have moved."""
        for columns, square in spans(self.moment):
            for low in range(0, len(square), _PIECE):
                self._move(columns, square, slice(low, min(low + _PIECE, len(square))))

    def _move(self, columns: slice, square: torch.Tensor, inside: slice) -> None:
        first = columns.start + inside.start
        there = slice(first, columns.start + inside.stop)
        corner = square[inside, inside].clone()
        corner.diagonal().add_(self.ridge)
        piece = _Piece(corner, self.gradient[there].clone())
        for low in range(0, len(corner), _LEAF):
            own = slice(low, min(low + _LEAF, len(corner)))
            change = self._leaf(first + low, corner[own, own], piece.pull[own])
            piece.change[own] = change
            add_product(piece.pull, corner[own], change, -1)
        for size, move in ((self.held.width, self._group), (self.held.block, self._block)):
            for low in range(-first % size, len(corner) - size + 1, size):
                move(piece, slice(low, low + size), (first + low) // size)
        self.error[there] -= piece.change
        self.gradient[there] -= self.ridge * piece.change
        add_product(self.gradient[columns], square[inside], piece.change, -1)

    def _leaf(self, first: int, corner: torch.Tensor, pull: torch.Tensor) -> torch.Tensor:
        """What values of the columns from ``first`` on rise by (columns, rows) as their codes move."""
        if self.held.layout.points is not None:
            return self._lattice(first, corner, pull, self.held.layout.points.width)
        moved = torch.empty_like(pull)
        rises, pulls = moved.numpy(), pull.numpy()
        for place in range(len(corner)):
            column = first + place
            value = self.held.value(column)
            own = pulls[place] - torch.mv(moved[:place].T, corner[:place, place]).numpy() if place else pulls[place]
            rises[place] = self.held.decide(column, value + own / np.float32(self.curvature[column])) - value
        return moved

    def _lattice(self, first: int, corner: torch.Tensor, pull: torch.Tensor, width: int) -> torch.Tensor:
        """As ``_leaf``, where neighbouring columns move together, as far as that helps."""
        moved, held = torch.zeros_like(pull), self.held
        for low in range(0, len(corner), width):
            own, columns = slice(low, low + width), slice(first + low, first + low + width)
            now, codes = held.values(columns), held.codes[columns].clone()
            force = pull[own] - corner[own, :low] @ moved[:low]
            held.together(columns, now + torch.linalg.solve(corner[own, own], force), corner[own, own])
            rise = held.values(columns) - now
            helps = (rise * (2 * force - corner[own, own] @ rise)).sum(0) > 0
            held.codes[columns] = torch.where(helps, held.codes[columns], codes)
            moved[own] = rise * helps
        return moved

    def _group(self, piece: _Piece, own: slice, group: int) -> None:
        """Move the whole numbers of a group's scale and minimum."""
        held = self.held
        if held.whole is None:
            return
        block = group * held.width // held.block
        columns = slice(group * held.width, (group + 1) * held.width)
        nearest = lambda best: whole(best, held.layout)
        held.whole[group] += piece.along(own, held.levels(columns) * held.step[block], held.whole[group], nearest)
        if held.below is not None and held.least is not None:
            direction = -held.least[block].expand(held.width, -1)
            held.below[group] += piece.along(own, direction, held.below[group], nearest)
        held.moved(slice(group, group + 1))

    def _block(self, piece: _Piece, own: slice, block: int) -> None:
        """Move a block's steps."""
        held, per = self.held, self.held.block // self.held.width
        groups = slice(block * per, (block + 1) * per)
        spread = lambda each: each[groups].repeat_interleave(held.width, 0)
        levels = held.levels(slice(block * held.block, (block + 1) * held.block))
        nearest = lambda best: half(best, held.layout.unit)
        held.step[block] += piece.along(own, levels if held.whole is None else levels * spread(held.whole), held.step[block], nearest)
        if held.least is not None:
            direction = torch.ones_like(levels) if held.below is None else -spread(held.below)
            held.least[block] += piece.along(own, direction, held.least[block], half)
        held.moved(groups)


class _Piece:
    """Columns that are moved: the covariance among them, what pulls at them, and what their values rise by (columns, rows)."""

    def __init__(self, corner: torch.Tensor, pull: torch.Tensor):
        self.corner, self.pull, self.change = corner, pull, torch.empty_like(pull)

    def along(
        self, own: slice, direction: torch.Tensor, now: torch.Tensor, nearest: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """What a number (rows,), times whose ``direction`` (columns, rows) the values of columns ``own`` rise, rises by: to the ``nearest`` of its
        best, where that helps.
        """
        felt = torch.zeros_like(self.pull)
        add_product(felt, self.corner[own], direction)
        force, curvature = _summed(direction * self.pull[own]), _summed(direction * felt[own])
        rise = nearest(now + divided(force, curvature)) - now
        rise = torch.where(rise * (2 * force - rise * curvature) > 0, rise, 0.0)
        self.pull -= felt * rise
        self.change[own] += direction * rise
        return rise


def _summed(values: torch.Tensor) -> torch.Tensor:
    """Sum of all columns (columns, rows), one after the other: torch takes an order that differs with the number of rows."""
    return torch.from_numpy(np.add.reduce(values.numpy(), axis=0))
