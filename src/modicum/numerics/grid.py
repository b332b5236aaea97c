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
        low, high = groups.amin(2).clamp_max(0), groups.amax(2).clamp_min(0)
        if clip >= 1:
            return self._range(low, high, dtype)
        counts = (torch.ones_like(weight[:1]) if importance is None else importance[None]).expand_as(
            weight if self.group < 0 else weight[:1]
        )
        weights = self.grouped(counts)
        if 0 < self.group < weight.shape[1] and (ragged := -weight.shape[1] % self.group):
            weights = weights.clone()
            weights[:, -1, -ragged:] = 0  # what pads a group has no say
        best, chosen = None, None
        # A symmetric grid has one level more below zero than above; a negative scale turns that to the side where it pays.
        signs = (1.0, -1.0) if self.symmetric and self.bits <= _SIGNED else (1.0,)
        shares = torch.linspace(1.0, clip, 2 + round((1.0 - clip) / _STEP)).tolist()
        for share, sign in itertools.product(shares, signs):
            scale, zero = self._range(low * share, high * share, dtype)
            scale = scale * sign
            loss = (self._round(groups, scale[..., None], zero if zero is None else zero[..., None]) - groups).square()
            loss = (loss if weights is None else loss * weights).sum(2)
            if best is None or chosen is None:
                best, chosen = loss, (scale, zero)
                continue
            better = loss < best
            best = torch.where(better, loss, best)
            chosen = (
                torch.where(better, scale, chosen[0]),
                zero if zero is None or chosen[1] is None else torch.where(better, zero, chosen[1]),
            )
        assert chosen is not None
        return chosen

    def _range(self, low: torch.Tensor, high: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None]:
        tiny = torch.finfo(dtype).tiny
        if self.symmetric:
            return (torch.maximum(-low, high) * 2 / self.top).clamp_min(tiny).to(dtype), None
        scale = ((high - low) / self.top).clamp_min(tiny).to(dtype)
        return scale, (-low / scale.float()).round().clamp(0, self.top).to(torch.uint8)

    def _round(self, value: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None) -> torch.Tensor:
        scale, offset = scale.float(), 2.0 ** (self.bits - 1) if zero is None else zero.float()
        return ((value / scale + offset).round().clamp(0, self.top) - offset) * scale

    def encode(self, weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None) -> Integer:
        """Every entry of float32 ``weight`` rounded to its group's nearest level."""
        empty = Integer(weight, scale, zero, self.bits, self.width(weight.shape[1]))
        offset = 2.0 ** (self.bits - 1) if zero is None else empty.spread(zero.float())
        codes = (weight / empty.spread(scale.float()) + offset).round().clamp(0, self.top).to(torch.uint8)
        return Integer(codes, scale, zero, self.bits, self.width(weight.shape[1]))

    def width(self, columns: int) -> int:
        """Group width as stored: 0 where one group covers a whole row of ``columns`` (or the tensor)."""
        return 0 if self.group <= 0 or self.group > columns else self.group
