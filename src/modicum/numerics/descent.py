"""Codes and scales of grids refined together, given how inputs go together: coordinate descent on what rounding lost.

With the weight error ``E = W - Q`` and the covariance H the loss is ``tr(E H Eᵀ)``. Its gradient ``G = E H`` says of every code what it would
best be while all others stay: ``q + G_k / H_kk`` in column k, rounded to the nearest level. Of a group's scale s, with the levels L that it
multiplies, it says ``s + (L · G) / (L H Lᵀ)``. No step makes the loss larger. Rows do not meet, so each step is one operation on all of them.
Gradients are matrix products of errors as they are when a piece of columns has its turn, so none is kept; with ``G = B + A`` of the errors before and
after a piece, whose own part is in A no longer, the loss is the sum over pieces of ``E (2 B + E H)``.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from modicum.core.blocks import Blocks, spans
from modicum.core.finite import finite
from modicum.forms.integer import Integer
from modicum.numerics.gram import add_product
from modicum.numerics.grid import Grid, least_scale
from modicum.numerics.rounding import decided
from modicum.numerics.solver import laned

# Columns moved one after the other before the gradients of those around them follow, and columns whose gradients are made together.
_LEAF, _PIECE = 32, 128
# Columns whose losses are summed in float64 at a time.
_FEW = 16


def descend(
    weights: Sequence[torch.Tensor], grids: Sequence[Grid], forms: Sequence[Integer], moment: torch.Tensor | Blocks, damping: float,
    sweeps: int, *, held: bool = False,
) -> tuple[list[Integer], list[torch.Tensor]]:  # fmt: skip
    """Forms that lose no more of float32 ``weights`` (rows, columns) than ``forms`` on these grids do, and the loss of each one's rows.

    The covariance is ``moment`` plus ``damping`` times its mean diagonal. In each of ``sweeps`` every code is moved once, and every scale that
    rows do not share, but where scales are ``held``. *Needs and cost:* rows · columns² multiply-adds in each sweep, twice as many where a scale
    belongs to more than 128 columns, and 128 for a weight more; 20 bytes a weight. Where float32 does not hold what is lost, ``forms`` stay as they
    are.
    """
    with np.errstate(all="ignore"):  # as in torch: what is not finite is told where a form is looked at
        descent = _Descent(weights, grids, forms, moment, damping)
        if held:
            descent.parts = []
        if sweeps and all(descent.sweep() for _ in range(sweeps)) and finite(descent.lost):
            return descent.forms(), descent.losses()
        if sweeps:
            descent = _Descent(weights, grids, forms, moment, damping)
        descent.rest()
        return list(forms), descent.losses()


def refined(
    weights: Sequence[torch.Tensor], grids: Sequence[Grid], forms: Sequence[Integer], moment: torch.Tensor | Blocks, damping: float,
    sweeps: Sequence[int],
) -> list[tuple[Integer, torch.Tensor]]:  # fmt: skip
    """What ``descend`` gives for each of them, and the loss of its rows; those of as many ``sweeps`` go together, and of none keep their forms."""
    made = {place: (form, torch.zeros(len(form.codes))) for place, form in enumerate(forms)}
    for count in set(sweeps) - {0}:
        mine = [place for place, each in enumerate(sweeps) if each == count]
        found = descend([weights[place] for place in mine], [grids[place] for place in mine], [forms[place] for place in mine],
                        moment, damping, count)  # fmt: skip
        made |= zip(mine, zip(*found))
    return [made[place] for place in range(len(forms))]


def least(tried: Sequence[tuple[Integer, torch.Tensor]]) -> tuple[Integer, torch.Tensor]:
    """Of forms of one weight, with the losses of their rows, each row's best, and its loss (rows,): rows do not meet. None of several may share a
    scale among rows.
    """
    if len(tried) == 1:
        return tried[0]
    forms = [form for form, _ in tried]
    lowest, which = torch.stack([losses.nan_to_num(torch.inf, torch.inf) for _, losses in tried]).min(0)
    rows, first = torch.arange(len(which)), forms[0]
    pick = lambda values: torch.stack(values)[which, rows]
    zero = None if first.zero is None else pick([form.zero for form in forms])
    return Integer(pick([form.codes for form in forms]), pick([form.scale for form in forms]), zero, first.bits, first.group), lowest


@dataclass(frozen=True)
class _Rows:
    """Neighbouring rows (``low``, ``high``) of one width of groups; ``shared``: with one scale for all."""

    low: int
    high: int
    width: int
    shared: bool

    @property
    def all(self) -> slice:
        return slice(self.low, self.high)

    def groups(self, columns: slice) -> list[slice]:
        """The groups among ``columns``."""
        return [slice(low, min(low + self.width, columns.stop)) for low in range(columns.start, columns.stop, self.width)]


class _Descent:
    """Weights below each other, seen by columns: those of few rows take no more calls together than alone."""

    def __init__(
        self,
        weights: Sequence[torch.Tensor],
        grids: Sequence[Grid],
        forms: Sequence[Integer],
        moment: torch.Tensor | Blocks,
        damping: float,
    ):
        self.starts, self.moment, self.columns = forms, moment, weights[0].shape[1]
        diagonal = moment.diagonal().float()
        mean = float(diagonal.double().mean())
        base = mean if mean > 0 else 1.0
        self.ridge = damping * base
        self.curvature = (torch.where(diagonal > 0, diagonal, base) + self.ridge).tolist()
        self._lay(grids, [laned(weight) for weight in weights])

    def _lay(self, grids: Sequence[Grid], weights: Sequence[torch.Tensor]) -> None:
        """Lay codes, scales and zero points below each other."""
        self.lows = np.cumsum([0, *map(len, weights)]).tolist()
        widths = [grid.width(self.columns) or self.columns for grid in grids]
        parts = [_Rows(low, high, width, grid.group < 0) for (low, high), width, grid in zip(itertools.pairwise(self.lows), widths, grids)]
        alike = [list(same) for _, same in itertools.groupby(parts, key=lambda part: (part.width, part.shared))]
        self.parts = [_Rows(same[0].low, same[-1].high, same[0].width, same[0].shared) for same in alike if not same[0].shared]
        self.step = widths[0] if len(set(widths)) == 1 else 1  # columns that share a scale in every form: mostly a group
        self.firsts = [torch.arange(0, self.columns, self.step) // width for width in widths]
        middle = lambda form: torch.full_like(form.scale, 2.0 ** (form.bits - 1), dtype=torch.float32) if form.zero is None else form.zero
        self.scales = self._laid([form.scale for form in self.starts], weights)
        self.offsets = self._laid([middle(form) for form in self.starts], weights)
        self.top = np.concatenate([np.full(len(weight), grid.top, np.float32) for grid, weight in zip(grids, weights)])
        # Below the last row of each stand rows of zeros: level 1 less the zero point 1.
        pad = lambda form, rows: torch.nn.functional.pad(form.codes, (0, 0, 0, rows - len(form.codes)), value=1)
        self.codes = torch.cat([pad(form, len(weight)) for form, weight in zip(self.starts, weights)]).T.contiguous()
        self.error = torch.cat(list(weights)).T.contiguous()
        for low in range(0, self.columns, self.step):
            columns = slice(low, min(low + self.step, self.columns))
            self.error[columns] -= self._levels(columns, slice(None)) * self.scales[low // self.step]
        # Columns whose gradients are made together and kept up to date: whole groups of those forms whose groups divide it.
        narrow = [width for width in widths if width <= _PIECE]
        self.piece = _PIECE if all(_PIECE % width == 0 for width in narrow) else _PIECE // max(narrow) * max(narrow)

    def _laid(self, values: Sequence[torch.Tensor], weights: Sequence[torch.Tensor]) -> torch.Tensor:
        """Scales or zero points (rows, groups) as they stand by columns (steps, rows)."""
        found = torch.ones(-(-self.columns // self.step), self.lows[-1])
        for value, form, firsts, low in zip(values, self.starts, self.firsts, self.lows):
            found[:, low : low + len(form.codes)] = value.float().T[firsts]
        return found

    def _levels(self, columns: slice, rows: slice) -> torch.Tensor:
        """Codes less their zero points (columns, rows), of columns that share a scale."""
        return self.codes[columns, rows] - self.offsets[columns.start // self.step, rows]

    def sweep(self) -> bool:
        """Move every code, and the scales of its group as soon as all columns of it have moved; wider groups' after all columns. Tells whether
        float32 held all gradients.
        """
        self.lost = torch.zeros(self.lows[-1], dtype=torch.float64)
        starts = [columns.start for columns, _ in spans(self.moment)]
        narrow = [part for part in self.parts if self.piece % part.width == 0 and all(start % part.width == 0 for start in starts)]
        for columns, square in spans(self.moment):
            for low in range(0, len(square), self.piece):
                if not self._move(columns, square, slice(low, min(low + self.piece, len(square))), narrow):
                    return False
        for part in self.parts:
            if part not in narrow:
                for group in part.groups(slice(0, self.columns)):
                    self._rescale(part, group)
        return True

    def rest(self) -> None:
        """Look what is lost without a move."""
        self.lost = torch.zeros(self.lows[-1], dtype=torch.float64)
        for columns, square in spans(self.moment):
            gradient = self.error[columns] * self.ridge
            add_product(gradient, square, self.error[columns])
            self.lost += _met(gradient, self.error[columns])

    def _move(self, columns: slice, square: torch.Tensor, inside: slice, narrow: Sequence[_Rows]) -> bool:
        """Move codes of some columns of a block, then scales, by what the errors of all its columns are now; tells whether float32 held that."""
        there = slice(columns.start + inside.start, columns.start + inside.stop)
        corner = square[inside, inside].clone()
        corner.diagonal().add_(self.ridge)
        before, after = torch.zeros(2, len(corner), self.lows[-1])
        add_product(before, square[inside, : inside.start].T, self.error[columns.start : there.start])
        add_product(after, square[inside, inside.stop :].T, self.error[there.stop : columns.stop])
        pull = before + after
        add_product(pull, corner, self.error[there])
        if not finite(pull):
            return False
        change = torch.empty_like(pull)
        for low in range(0, len(corner), _LEAF):
            own = slice(low, min(low + _LEAF, len(corner)))
            change[own] = self._leaf(there.start + low, corner[own, own], pull[own])
            add_product(pull, corner[own], change[own], -1)
        for part in narrow:
            for own in part.groups(slice(0, len(corner))):
                group = slice(there.start + own.start, there.start + own.stop)
                levels = self._levels(group, part.all)
                felt = torch.zeros(len(corner), part.high - part.low)
                add_product(felt, corner[own], levels)
                rise = self._rise(part, group, _summed(levels * pull[own, part.all]), _summed(levels * felt[own]))
                pull[:, part.all] -= felt * rise
                change[own, part.all] += levels * rise
        self.error[there] -= change
        self.lost += _met(pull.add_(before).sub_(after), self.error[there])
        return True

    def _leaf(self, first: int, corner: torch.Tensor, pull: torch.Tensor) -> torch.Tensor:
        """What values of the columns from ``first`` on rise by (columns, rows) as their codes move."""
        moved = torch.empty_like(pull)
        codes, rises, pulls = self.codes.numpy(), moved.numpy(), pull.numpy()
        for place in range(len(corner)):
            k, group = first + place, (first + place) // self.step
            scale, offset = self.scales[group].numpy(), self.offsets[group].numpy()
            value = (codes[k] - offset) * scale
            own = pulls[place] - torch.mv(moved[:place].T, corner[:place, place]).numpy() if place else pulls[place]
            better, codes[k] = decided(value + own / np.float32(self.curvature[k]), scale, offset, self.top)
            np.subtract(better, value, out=rises[place])
        return moved

    def _rescale(self, part: _Rows, group: slice) -> None:
        """Move the scales of a group that several pieces, or blocks, have a part in."""
        levels, met = self._levels(group, part.all), []
        for columns, square in spans(self.moment):
            own = slice(max(columns.start, group.start), min(columns.stop, group.stop))
            if own.start < own.stop:
                met.append((columns, torch.zeros(len(square), part.high - part.low)))
                add_product(
                    met[-1][1], square[own.start - columns.start : own.stop - columns.start],
                    levels[own.start - group.start : own.stop - group.start],
                )  # fmt: skip
        levelled = self.ridge * levels
        felt = torch.cat([product for _, product in met])[group.start - met[0][0].start :][: len(levels)] + levelled
        force = _met(levelled, self.error[group, part.all])
        for columns, product in met:
            force += _met(product, self.error[columns, part.all])
        curvature = _summed(levels * felt)
        rise = self._rise(part, group, force.float(), curvature)
        self.error[group, part.all] -= levels * rise
        self.lost[part.all] -= rise * (2 * force - rise * curvature)

    def _rise(self, part: _Rows, group: slice, force: torch.Tensor, curvature: torch.Tensor) -> torch.Tensor:
        """What the scales (rows,) of a group rise by, given what its levels have in common with the gradient, and with themselves."""
        dtype = self.starts[0].scale.dtype
        steps = slice(group.start // self.step, (group.stop - 1) // self.step + 1)
        scale = self.scales[steps.start, part.all]
        best = (scale + torch.where(curvature > 0, force / curvature, 0.0)).to(dtype).float()
        rise = best - scale
        # Rounded to its dtype it may be worse; and a scale keeps its sign.
        helps = (rise * (2 * force - rise * curvature) > 0) & (best * scale > 0) & (best.abs() >= least_scale(dtype))
        rise = torch.where(helps, rise, 0.0)
        self.scales[steps, part.all] += rise
        return rise

    def losses(self) -> list[torch.Tensor]:
        """``E H Eᵀ`` of each row after the last sweep, or at rest, by weight."""
        return [self.lost[low : low + len(form.codes)] for form, low in zip(self.starts, self.lows)]

    def forms(self) -> list[Integer]:
        """The forms as they are now."""
        found = []
        for form, low in zip(self.starts, self.lows):
            rows = slice(low, low + len(form.codes))
            firsts = torch.arange(0, self.columns, form.group or self.columns) // self.step
            scale = form.scale if len(form.scale) < len(form.codes) else self.scales.T[rows, firsts].to(form.scale.dtype)
            found.append(Integer(self.codes[:, rows].T.contiguous(), scale, form.zero, form.bits, form.group))
        return found


def _summed(values: torch.Tensor) -> torch.Tensor:
    """Sum of all columns (columns, rows), one after the other: torch takes an order that differs with the number of rows."""
    return torch.from_numpy(np.add.reduce(values.numpy(), axis=0))


def _met(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Sum of products of all columns (columns, rows), in float64."""
    total = torch.zeros(left.shape[1], dtype=torch.float64)
    for one, other in zip(left.split(_FEW), right.split(_FEW)):  # what stays in the cache, in a twelfth of the time
        total += _summed(one.double() * other)
    return total
