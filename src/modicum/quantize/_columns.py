"""Columns: a grid's codes are decided column by column under a covariance, for several weights and grids at once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from modicum.core.method import Method
from modicum.core.settings import param
from modicum.core.unit import Stats
from modicum.forms import Form, Integer
from modicum.forms.integer import stacked
from modicum.numerics.descent import descend, least, refined
from modicum.numerics.grid import Grid
from modicum.numerics.rounding import Rounding
from modicum.numerics.solver import BlockFactor, Factor, slabs
from modicum.quantize._aim import FEW, aimed, made
from modicum.quantize._factor import factored
from modicum.quantize._family import Quantizer
from modicum.quantize._rounded import rounded, rounded_together

# Rows that are solved together: so few that a column's operations cost their calls.
_TOGETHER, _SLAB = 4096, 1 << 24
# How far ranges are clipped at a second start, relative to the first; it, and more than one sweep, are worth their time at so many bits of what is
# written. There the better start alone is refined: of the demo's layers that loses 1 % more than refining both, in half the time.
_CLOSER, _SETTLED = 0.75, 4


@dataclass(frozen=True, kw_only=True)
class Columns(Quantizer):
    """Settings of the column solver, and what it makes: alone, or beside its like where few rows would cost their calls."""

    damping: float = param(
        0.01, "share of the covariance's mean diagonal added to its diagonal, of tables at least 0.1", between=(0.0, 10.0)
    )
    order: str = param("static", "columns by falling input energy (static), or as they stand (none)", choices=("static", "none"))
    clip: float = param(
        0.8, "least share of each group's range tried in search of the least weighted squared error; 1: none", between=(0.1, 1.0)
    )
    sweeps: int = param(3, "times that all codes and scales are moved to their best in turn; of more than 4 bits once", between=(0, 100))
    towards: float = param(0.5, "how far codes of up to 3 bits make up for what was lost before: 1 as well as they can", between=(0.0, 1.0))

    def target(self, weight: torch.Tensor, stats: Stats) -> torch.Tensor:
        """What makes up for a part of what was lost before."""
        return aimed(self, weight, stats, self.order)

    def _rounds(self, stats: Stats) -> int:
        """Sweeps that these bits are worth: of many, what is only compared takes none."""
        if self.bits <= FEW or self._settles(stats):
            return self.sweeps
        return 0 if stats.ahead and self.bits > _SETTLED else min(self.sweeps, 1)

    def _settles(self, stats: Stats) -> bool:
        """Whether rows choose among starts before they are refined."""
        return self.bits == _SETTLED and not stats.ahead

    def quantize(self, weight: torch.Tensor, grid: Grid, stats: Stats, dtype: torch.dtype) -> Form:
        """Solve on the covariance of inputs; of few rows together with its like, for a column takes a time that few rows do not change."""
        assert stats.moment is not None
        known, form = stats.made.pop(self, (None, None))
        if known is not None and torch.equal(known, weight):
            return form  # type: ignore[return-value]
        alike = self._alike(stats, weight)
        if len(alike) > 1:
            forms = self._together([(step, weight) for step in alike], stats, dtype)
            stats.made |= {step: (weight, form) for step, form in zip(alike, forms)}
            return stats.made.pop(self)[1]
        if stats.beside and self._goes_with(self):
            return self._with_others(weight, stats, dtype)
        alone = lambda parts: [self._alone(part, grid, stats, dtype) for part in parts]
        return made(self, [weight], [stats], alone)[0]

    def _alone(self, weight: torch.Tensor, grid: Grid, stats: Stats, dtype: torch.dtype) -> Integer:
        """The form of one weight."""
        assert stats.moment is not None
        sequential = self.order == "none" and grid.width(weight.shape[1]) > 0
        order, factor = factored(stats, self.damping, self.order, grid.group if sequential else 1)
        fits = [grid.fit(weight, dtype, importance=importance, clip=clip) for importance, clip in self._starts(grid, stats, factor, order)]
        forms, total = list[Integer](), 0.0
        for rows in slabs(weight):
            own = rows if grid.group >= 0 else slice(None)
            roundings = [Rounding(grid, scale[own], None if zero is None else zero[own], weight[rows].shape, order) for scale, zero in fits]
            refit = (stats.moment.diagonal(), self.clip) if sequential else None
            tried = [rounded(weight[rows], one, factor, refit) for one in roundings]
            tried = [least(tried)] if self._settles(stats) else tried
            if rounds := self._rounds(stats):
                moved = [descend([weight[rows]], [grid], [form], stats.moment, factor.damping, rounds) for form, _ in tried]
                tried = [(form, lost) for (form,), (lost,) in moved]
            form, loss = least(tried)
            forms.append(form)
            total += float(loss.sum())
        stats.cache["loss"] = total
        return forms[0] if len(forms) == 1 else stacked(forms, shared=grid.group < 0)

    def _starts(
        self, grid: Grid, stats: Stats, factor: Factor | BlockFactor, order: torch.Tensor
    ) -> list[tuple[torch.Tensor, float]]:  # fmt: skip
        """What columns are worth while grids are fitted, and how far ranges are clipped: where few bits are refined, and rows do not share a scale,
        also by what others leave of each column, clipped closer; each row then takes what loses least.
        """
        assert stats.moment is not None
        starts = [(stats.moment.diagonal(), self.clip)]
        if self.sweeps and grid.bits <= (FEW if stats.ahead else _SETTLED) and self.order == "static" and self.clip < 1 and grid.group >= 0:
            starts.append((torch.empty_like(factor.curvature).index_copy_(0, order, factor.curvature), _CLOSER * self.clip))
        return starts

    def _alike(self, stats: Stats, weight: torch.Tensor) -> list[Columns]:
        """The method itself and those to come that are solved with it."""
        coming = dict.fromkeys(stats.ahead[stats.ahead.index(self) :]) if self in stats.ahead else ()
        most = min(_TOGETHER // max(1, len(weight)), _SLAB // max(1, (2 if self.sweeps else 1) * weight.numel()))
        return [step for step in coming if isinstance(step, Columns) and self._goes_with(step) and step not in stats.made][:most]

    def _goes_with(self, other: Method) -> bool:
        """Whether one factorization and one order of columns serve both."""
        return (
            isinstance(other, Columns)
            and self.order == other.order == "static"
            and (self.sweeps, self.feels) == (other.sweeps, other.feels)
            and (self.damping, self.clip, self.towards) == (other.damping, other.clip, other.towards)
        )

    def _with_others(self, weight: torch.Tensor, stats: Stats, dtype: torch.dtype) -> Form:
        """The form, and those of the weights beside it, which they will ask for."""
        others = [(other.float(), theirs) for other, theirs in stats.beside]
        told = len(stats.events)
        together = lambda parts: self._together([(self, part) for part in parts], stats, dtype)
        form, *forms = made(self, [weight, *(other for other, _ in others)], [stats, *(theirs for _, theirs in others)], together)
        for (other, theirs), one in zip(others, forms):
            theirs.made[self] = (other, one)
            theirs.events += stats.events[told:]
        return form

    def _together(self, pairs: Sequence[tuple[Columns, torch.Tensor]], stats: Stats, dtype: torch.dtype) -> list[Integer]:
        """What each method gives on its weight, solved at once: rows do not meet."""
        assert stats.moment is not None
        order, factor = factored(stats, self.damping, self.order)
        starts = [self._starts(step.grid, stats, factor, order) for step, _ in pairs]
        begun = [(step.grid, weight, start) for (step, weight), own in zip(pairs, starts) for start in own]
        grids, weights = [grid for grid, _, _ in begun], [weight for _, weight, _ in begun]
        fits = [grid.fit(weight, dtype, importance=importance, clip=clip) for grid, weight, (importance, clip) in begun]
        solved = iter(rounded_together(weights, grids, fits, order, factor))
        tried = [list(itertools.islice(solved, len(own))) for own in starts]
        tried = [[least(own)] if step._settles(stats) else own for (step, _), own in zip(pairs, tried)]
        worth = [(pair, form) for pair, own in zip(pairs, tried) for form, _ in own]
        steps, weights, forms = [step for (step, _), _ in worth], [weight for (_, weight), _ in worth], [form for _, form in worth]
        sweeps = [step._rounds(stats) for step in steps]
        each = iter(refined(weights, [step.grid for step in steps], forms, stats.moment, factor.damping, sweeps))
        return [least(list(itertools.islice(each, len(own))))[0] for own in tried]
