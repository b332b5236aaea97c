"""AdaQuant: a layer's weights and steps are moved by gradients until what it gives in codes is what it gave."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from modicum.core.method import Need, Paper
from modicum.core.settings import param
from modicum.core.unit import Stats
from modicum.forms import Form, Integer
from modicum.numerics.grid import Grid, least_scale
from modicum.quantize._family import Quantizer
from modicum.quantize.hqq import Hqq

# Decay of both moments of a gradient.
_FIRST, _SECOND = 0.9, 0.999


@dataclass(frozen=True, kw_only=True)
class Adaquant(Quantizer):
    """Optimise a layer's weights and steps for the least squared error of its outputs, with straight-through gradients of rounding.

    ``min_{V, s} ‖(W - Q_s(W + V)) X‖²``: of the inputs only the covariance H counts, so a step's gradient is ``-2 (W - Q) H``, by V as it is and by
    ``log s`` times what a code is off. Adam moves both under a cosine; each row keeps the codes of least error that it met.

    *Shapes:* weight (rows, columns), covariance (columns, columns). *Needs and cost:* covariance; ``steps · rows · columns²`` multiply-adds. *Reduces
    to:* nearest rounding within a searched range at ``steps=0``. *Raises:* ``SettingError`` where it comes after a step that left no dense
    weight. Weights whose inputs were not seen take ``hqq`` at the same bits.

    *Differences from the paper:* outputs are told by the covariance instead of by the inputs of a batch; inputs are those that the compressed model
    makes, not rounded to few bits; zero points stay where the search put them, and biases as they are.

    Example:
        >>> import torch
        >>> weight, stats = torch.randn(8, 64), Stats(count=99, covariance=torch.eye(64))
        >>> Adaquant(bits=4, group=32, steps=3).quantize(weight, Grid(4, 32), stats, torch.float32).bits
        4

    """

    paper = Paper(
        "Improving Post Training Neural Quantization: Layer-wise Calibration and Integer Programming", "2006.10518", 2020,
        "Hubara, Itay and others",
    )  # fmt: skip
    needs = frozenset({Need.COVARIANCE})
    blockwise = True

    steps: int = param(200, "updates of each layer", between=(0, 1_000_000))
    rate: float = param(0.05, "how far an update moves a weight at most, in steps of its grid", between=(0.0, 10.0))
    scale_rate: float = param(0.002, "how far an update moves the logarithm of a step at most", between=(0.0, 1.0))
    clip: float = param(0.8, "least share of each group's range tried at the start", between=(0.1, 1.0))

    def without_data(self) -> Hqq:
        """The stand-in for weights whose inputs were not seen."""
        return Hqq(bits=self.bits, group=self.group, symmetric=self.symmetric, scales=self.scales)

    def quantize(self, weight: torch.Tensor, grid: Grid, stats: Stats, dtype: torch.dtype) -> Form:
        """Move weights and steps from the best clipped range."""
        moment = stats.moment
        assert moment is not None
        first, zero = grid.fit(weight, dtype, importance=moment.diagonal(), clip=self.clip)
        level = torch.full_like(first, 2.0 ** (grid.bits - 1), dtype=torch.float32) if zero is None else zero.float()
        moved, shift = torch.zeros_like(weight), torch.zeros_like(first, dtype=torch.float32)
        best, codes, scale = torch.full((len(weight),), torch.inf), grid.encode(weight, first, zero).codes, first
        adam = [_Adam(moved), _Adam(shift)]
        unit = moment.diagonal().mean().clamp_min(1e-30)
        for step in range(self.steps + 1):
            now = (first.float().abs() * shift.exp()).clamp_min(least_scale(dtype)).copysign(first.float()).to(dtype)
            wide, zeros = self._spread(now.float(), weight, grid), self._spread(level, weight, grid)
            placed = (weight + moved) / wide + zeros
            found = placed.round().clamp(0, grid.top)
            error = (found - zeros) * wide - weight
            slope = error @ moment / unit
            loss = (slope * error).sum(1)
            better = loss < best if len(now) == len(weight) else (loss.sum() < best.sum()).expand_as(best)
            best, codes = torch.where(better, loss, best), torch.where(better[:, None], found.to(torch.uint8), codes)
            scale = torch.where(better[:, None], now, scale) if len(now) == len(weight) else now if bool(better[0]) else scale
            pace = 0.5 * (1 + math.cos(math.pi * step / max(1, self.steps)))
            inside = (placed >= -0.5) & (placed <= grid.top + 0.5)
            by_scale = slope * wide * (found - zeros - (placed - zeros) * inside)
            moved -= self.rate * pace * wide.abs() * adam[0](slope * inside)
            shift -= self.scale_rate * pace * adam[1](self._gathered(by_scale, shift, grid))
        return Integer(codes, scale, zero, grid.bits, grid.width(weight.shape[1]))

    @staticmethod
    def _spread(per_group: torch.Tensor, weight: torch.Tensor, grid: Grid) -> torch.Tensor:
        """A number for each group laid out over the columns, or broadcastable against them."""
        if per_group.shape[1] == 1:
            return per_group
        return per_group.repeat_interleave(grid.group, 1)[:, : weight.shape[1]]

    @staticmethod
    def _gathered(value: torch.Tensor, like: torch.Tensor, grid: Grid) -> torch.Tensor:
        """Sums over groups."""
        if like.shape[1] == 1:
            return value.sum().view(1, 1) if len(like) < len(value) else value.sum(1, keepdim=True)
        return torch.nn.functional.pad(value, (0, -value.shape[1] % grid.group)).view(len(value), -1, grid.group).sum(2)


class _Adam:
    """Directions of Adam's updates, each entry at most about one."""

    def __init__(self, like: torch.Tensor):
        self.first, self.second, self.count = torch.zeros_like(like), torch.zeros_like(like), 0

    def __call__(self, gradient: torch.Tensor) -> torch.Tensor:
        """The direction after one more gradient."""
        self.count += 1
        self.first.lerp_(gradient, 1 - _FIRST)
        self.second.lerp_(gradient.square(), 1 - _SECOND)
        mean, square = self.first / (1 - _FIRST**self.count), self.second / (1 - _SECOND**self.count)
        return mean / square.sqrt().add_(1e-12)
