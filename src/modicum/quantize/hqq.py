"""HQQ: the grid itself is optimised for a robust norm of the weight error, without data."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from modicum.core.method import Paper
from modicum.core.settings import param
from modicum.core.unit import Stats
from modicum.forms import Form
from modicum.numerics.grid import Grid, pieces
from modicum.quantize._family import Quantizer


@dataclass(frozen=True, kw_only=True)
class Hqq(Quantizer):
    """Fit each group's grid to a sparsity-promoting norm of the weight error, by half-quadratic splitting.

    Alternates ``e = shrink(W - Ŵ)``, the proximal step of the l_p norm, and the grid's closed form given ``W - e``: outliers end in e
    and no longer stretch the grid.

    *Shapes:* weight (rows, columns); grids per row and group. *Needs and cost:* no data; ``steps`` passes over the weight. *Reduces to:*
    nearest rounding with ``steps=0 clip=1``. *Raises:* ``SettingError`` where it comes after a step that left no dense weight.

    *Differences from the paper:* scale and zero point are both refitted, by least squares, and the zero point is rounded to the integer that
    runtimes store; each group keeps the best grid it met.

    Example:
        >>> import torch
        >>> Hqq(bits=2, group=32).quantize(torch.randn(4, 64), Grid(2, 32), Stats(), torch.float32).bits
        2

    """

    paper = Paper("Half-Quadratic Quantization of Large Machine Learning Models", "", 2023, "Badri, Hicham and Shaji, Appu")

    steps: int = param(5, "alternations", between=(0, 1000))
    clip: float = param(0.8, "least share of the range tried for the first grid", between=(0.1, 1.0))
    norm: float = param(0.7, "exponent p of the norm that is minimised", between=(0.1, 2.0))
    strength: float = param(1.0, "weight of the quadratic coupling, relative to the group's mean error", between=(0.01, 1e6))

    def quantize(self, weight: torch.Tensor, grid: Grid, stats: Stats, dtype: torch.dtype) -> Form:
        """Alternate from the best clipped range."""
        scale, zero = grid.fit(weight, dtype, clip=self.clip)
        if self.steps:
            groups = grid.grouped(weight)
            for piece in pieces(groups):
                better = self._refine(grid, groups[piece], scale[piece], None if zero is None else zero[piece])
                scale[piece] = better[0]
                if zero is not None and better[1] is not None:
                    zero[piece] = better[1]
        return grid.encode(weight, scale, zero)

    def _refine(
        self, grid: Grid, groups: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Best grid met per group, for ``groups`` (rows, groups, width)."""
        dtype, best = scale.dtype, torch.full(scale.shape, torch.inf, device=groups.device)
        kept_scale, kept_zero = scale, zero
        now_scale, now_zero = scale.float(), torch.full_like(scale.float(), 2.0 ** (grid.bits - 1)) if zero is None else zero.float()
        for step in range(self.steps):
            rounded = now_scale.to(dtype).float()[..., None]
            levels = (groups / rounded).add_(now_zero[..., None]).round_().clamp_(0, grid.top).sub_(now_zero[..., None])
            error = torch.addcmul(groups, levels, rounded, value=-1)
            size = error.abs()
            unit = size.mean(2, keepdim=True).clamp_min_(1e-30)
            size.div_(unit)
            power = size.clamp_min(1e-8).log_().mul_(self.norm - 1).exp_()  # a third of the time of pow
            loss = unit[..., 0] ** self.norm * (size * power).sum(2)
            better = loss < best
            best = torch.where(better, loss, best)
            kept_scale = torch.where(better, now_scale.to(dtype), kept_scale)
            if kept_zero is not None:
                kept_zero = torch.where(better, now_zero.to(torch.uint8), kept_zero)
            if step == self.steps - 1:
                break  # nobody would look at what comes next
            # The proximal step of the norm, in units of the group's mean error.
            shrunk = size.add_(power, alpha=-1 / self.strength).clamp_min_(0).mul_(unit).copysign_(error)
            now_scale, now_zero = _regress(groups - shrunk, levels, now_scale, now_zero, None if zero is None else grid.top)
        return kept_scale, kept_zero


def _regress(
    target: torch.Tensor, levels: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, top: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Least-squares scale, and zero point rounded into [0, ``top``] (fixed where ``top`` is None), of ``target`` given its levels: its codes
    less the zero point until now.
    """
    squares, products, moved = levels.square().sum(2), (levels * target).sum(2), torch.zeros_like(scale)
    if top is not None:
        mean, middle, count = levels.mean(2), target.mean(2), levels.shape[2]
        spread = squares - count * mean.square()
        slope = torch.where(spread > 0.5, (products - count * mean * middle) / spread.clamp_min(0.5), scale)  # whole numbers that differ
        slope = torch.where(slope > 0, slope, scale)
        moved = (zero + mean - middle / slope).round_().clamp_(0, top) - zero
        squares = squares + count * moved * (moved - 2 * mean)
        products = products - count * moved * middle
    fitted = torch.where(squares > 0.5, products / squares.clamp_min(0.5), scale)
    return torch.where(fitted > 0, fitted, scale), zero + moved
