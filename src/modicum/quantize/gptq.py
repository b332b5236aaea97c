"""GPTQ: each column is rounded, and the columns after it absorb its error."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from typing_extensions import override

from modicum.core.method import Method, Need, Paper
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
from modicum.quantize.hqq import Hqq

# Rows that are solved together: so few that a column's operations cost their calls.
_TOGETHER, _SLAB = 4096, 1 << 24
# How far ranges are clipped at a second start, relative to the first; it, and more than one sweep, are worth their time at so many bits of what is
# written. There the better start alone is refined: of the demo's layers that loses 1 % more than refining both, in half the time.
_CLOSER, _SETTLED = 0.75, 4


@dataclass(frozen=True, kw_only=True)
class Gptq(Quantizer):
    """Round column by column so that later columns absorb the error on the calibration inputs.

    Minimises ``tr((W - Q) H (W - Q)ᵀ)`` greedily, H the covariance of inputs: column k is rounded at its corrected value
    ``w_k + Σ_{j<k} (w_j - q_j) M_jk`` with ``H = M D Mᵀ`` (see ``numerics/solver.py``).

    *Shapes:* weight (rows, columns), covariance (columns, columns). *Needs and cost:* covariance; one Cholesky factorization shared by all
    units of a stage and all bits, then rows · columns² multiply-adds, and again for each sweep (see ``numerics/descent.py``); at up to 3 bits the
    original runs beside the compressed model; ``turns`` take gradients of the output. *Reduces to:* nearest rounding where the covariance is
    diagonal, ``order=none``, ``clip=1``, ``sweeps=0``, ``towards=0`` and ``turns=1``. *Raises:* ``ModelError`` where no damping makes the covariance
    positive definite. Weights whose inputs were not seen take ``hqq`` at the same bits.

    *Differences from the paper:* one factorization instead of an inverse and a factorization; groups are fitted to the original weights when
    columns are reordered, so that nothing but scales is stored; a group's range may be clipped to the share of least squared error under the
    covariance's diagonal, at most to ``clip``; what the columns decided is refined by coordinate descent over all codes and scales, at up to 3
    bits from two starts of which each row takes the better (of 4 bits that are written the better before it is refined; ``sweeps=0`` leaves that
    out); of more than 4 bits what is only compared with other options is not refined. At up to 3 bits codes come
    near ``W + towards · W Δ H⁻¹``, where Δ sums ``(y - x) xᵀ`` of the original's inputs y, so that a layer makes up for a part of what was lost
    before it (Arai and Ichikawa 2025, Quantization Error Propagation; ``towards=0`` leaves that out), and rows go in turns, of which later ones
    make up for earlier ones (``numerics/coupled.py``; Tseng, Sun and De Sa 2025, YAQA; which more than one of ``turns`` asks for).

    Example:
        >>> import torch
        >>> weight, stats = torch.randn(8, 64), Stats(count=99, covariance=torch.eye(64))
        >>> Gptq(bits=4, group=32).quantize(weight, Grid(4, 32), stats, torch.float32).bits
        4

    """

    paper = Paper(
        "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", "2210.17323", 2022,
        "Frantar, Elias and Ashkboos, Saleh and Hoefler, Torsten and Alistarh, Dan",
    )  # fmt: skip
    needs = frozenset({Need.COVARIANCE})
    blockwise = True
    menu = tuple({"bits": bits} for bits in range(2, 9))

    damping: float = param(0.01, "share of the covariance's mean diagonal added to its diagonal", between=(0.0, 10.0))
    order: str = param("static", "columns by falling input energy (static), or as they stand (none)", choices=("static", "none"))
    clip: float = param(
        0.8, "least share of each group's range tried in search of the least weighted squared error; 1: none", between=(0.1, 1.0)
    )
    sweeps: int = param(3, "times that all codes and scales are moved to their best in turn; of more than 4 bits once", between=(0, 100))
    towards: float = param(0.5, "how far codes of up to 3 bits make up for what was lost before: 1 as well as they can", between=(0.0, 1.0))
    turns: int = param(1, "turns of rows of up to 3 bits, later ones making up for losses of earlier ones; 1: none do", between=(1, 64))

    @override
    def wanted(self) -> frozenset[Need]:
        """Few bits ask how inputs drifted, and how the output feels rows together."""
        more = {Need.DRIFT: self.towards, Need.FELT: self.turns > 1 and self.group >= 0}
        return self.needs | (frozenset(need for need, asked in more.items() if asked) if self.bits <= FEW else frozenset())

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

    def without_data(self) -> Hqq:
        """The stand-in for weights whose inputs were not seen."""
        return Hqq(bits=self.bits, group=self.group, symmetric=self.symmetric, scales=self.scales)

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

    def _alike(self, stats: Stats, weight: torch.Tensor) -> list[Gptq]:
        """The method itself and those to come that are solved with it."""
        coming = dict.fromkeys(stats.ahead[stats.ahead.index(self) :]) if self in stats.ahead else ()
        most = min(_TOGETHER // max(1, len(weight)), _SLAB // max(1, (2 if self.sweeps else 1) * weight.numel()))
        return [step for step in coming if isinstance(step, Gptq) and self._goes_with(step) and step not in stats.made][:most]

    def _goes_with(self, other: Method) -> bool:
        """Whether one factorization and one order of columns serve both."""
        return (
            isinstance(other, Gptq)
            and self.order == other.order == "static"
            and self.sweeps == other.sweeps
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

    def _together(self, pairs: Sequence[tuple[Gptq, torch.Tensor]], stats: Stats, dtype: torch.dtype) -> list[Integer]:
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
