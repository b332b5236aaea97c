"""Integer grids: how scales and zero points are fitted, and how values meet their codes."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch

from modicum.forms.integer import Integer

# Above this width one level more on one side is worth nothing.
_SIGNED = 4
# Distance of the shares of the range that a search tries.
_STEP = 0.025
# Weights of a piece that stays in a core's cache.
_CACHED = 1 << 17


@dataclass(frozen=True)
class Grid:
    """``2^bits`` levels per group of ``group`` columns (0: one group per row, -1: one per tensor), symmetric around zero or not."""

    bits: int
    group: int = 64
    symmetric: bool = False

    @property
    def top(self) -> int:
        """Largest code."""
        return 2**self.bits - 1

    def grouped(self, weight: torch.Tensor) -> torch.Tensor:
        """Weight (rows, columns) as (rows, groups, width), a ragged last group padded by repeating its last column."""
        rows, columns = weight.shape
        if self.group < 0:
            return weight.reshape(1, 1, -1)
        if self.group == 0 or self.group >= columns:
            return weight.reshape(rows, 1, columns)
        if ragged := -columns % self.group:
            weight = torch.cat([weight, weight[:, -1:].expand(rows, ragged)], 1)
        return weight.reshape(rows, -1, self.group)

    def fit(
        self, weight: torch.Tensor, dtype: torch.dtype, *, importance: torch.Tensor | None = None, clip: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Scale (rows, groups) in ``dtype`` and zero point uint8 (None where symmetric) for float32 ``weight`` (rows, columns).

        At ``clip`` 1 the full range is covered. Below, shares of the range from 1 down to ``clip`` are tried, and the one of least squared
        error, each column weighted by ``importance`` (columns,), is chosen per group.
        """
        groups = self.grouped(weight)
        if clip >= 1:
            return self._range(*_bounds(groups), dtype)
        counts = (torch.ones_like(weight[:1]) if importance is None else importance[None]).expand_as(
            weight if self.group < 0 else weight[:1]
        )
        weights = self.grouped(counts)
        if 0 < self.group < weight.shape[1] and (ragged := -weight.shape[1] % self.group):
            weights = weights.clone()
            weights[:, -1, -ragged:] = 0  # what pads a group has no say
        found = [self._search(groups[piece], weights, dtype, clip) for piece in pieces(groups)]
        zeros = [zero for _, zero in found if zero is not None]
        return torch.cat([scale for scale, _ in found]), torch.cat(zeros) if zeros else None

    def _search(
        self, groups: torch.Tensor, weights: torch.Tensor, dtype: torch.dtype, clip: float
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The best of several shares of the range, for ``groups`` (rows, groups, width)."""
        low, high = _bounds(groups)
        placed, error = torch.empty_like(groups), torch.empty_like(groups)
        best, chosen = torch.full_like(low, torch.inf), self._range(low, high, dtype)
        # A symmetric grid has one level more below zero than above; a negative scale turns that to the side where it pays.
        signs = (1.0, -1.0) if self.symmetric and self.bits <= _SIGNED else (1.0,)
        shares = torch.linspace(1.0, clip, 2 + round((1.0 - clip) / _STEP)).tolist()
        for share, sign in itertools.product(shares, signs):
            scale, zero = self._range(low * share, high * share, dtype)
            scale = scale * sign
            step = scale.float()
            # In units of a step: where a weight lies on the grid, and how far that is from its level.
            torch.div(groups, step[..., None], out=placed).add_(2.0 ** (self.bits - 1) if zero is None else zero.float()[..., None])
            torch.round(placed, out=error).clamp_(0, self.top).sub_(placed).square_().mul_(weights)
            loss = error.sum(2).mul_(step.square())
            better = loss < best
            best = torch.where(better, loss, best)
            chosen = (
                torch.where(better, scale, chosen[0]),
                None if zero is None or chosen[1] is None else torch.where(better, zero, chosen[1]),
            )
        return chosen

    def _range(self, low: torch.Tensor, high: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None]:
        tiny = least_scale(dtype)
        if self.symmetric:
            return (torch.maximum(-low, high) * 2 / self.top).clamp_min(tiny).to(dtype), None
        scale = ((high - low) / self.top).clamp_min(tiny).to(dtype)
        return scale, (-low / scale.float()).round().clamp(0, self.top).to(torch.uint8)

    def encode(self, weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None) -> Integer:
        """Every entry of float32 ``weight`` rounded to its group's nearest level."""
        codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
        for piece in pieces(weight):
            part = self.grouped(weight[piece])
            rows = slice(None) if len(scale) == 1 < len(weight) else piece
            placed = part / scale[rows].float()[..., None]
            placed.add_(2.0 ** (self.bits - 1) if zero is None else zero[rows].float()[..., None])
            codes[piece] = placed.round_().clamp_(0, self.top).view(len(codes[piece]), -1)[:, : weight.shape[1]]
        return Integer(codes, scale, zero, self.bits, self.width(weight.shape[1]))

    def width(self, columns: int) -> int:
        """Group width as stored: 0 where one group covers a whole row of ``columns`` (or the tensor)."""
        return 0 if self.group <= 0 or self.group > columns else self.group


def least_scale(dtype: torch.dtype) -> float:
    """The smallest scale of a dtype that divides in float32: of float16, whose range is narrow, a subnormal."""
    span = torch.finfo(dtype)
    return max(span.tiny * span.eps if dtype == torch.float16 else span.tiny, torch.finfo(torch.float32).tiny)


def pieces(values: torch.Tensor) -> list[slice]:
    """Slices of rows that stay in a core's cache through several passes."""
    count = max(1, _CACHED // max(1, values[0].numel()))
    return [slice(low, low + count) for low in range(0, len(values), count)]


def _bounds(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Least and largest value of each group of (rows, groups, width), zero included."""
    low, high = groups.aminmax(dim=2)
    return low.clamp_max_(0), high.clamp_min_(0)
