"""Floats of few bits: how their scales are fitted, and how values meet their codes."""

from __future__ import annotations

import torch

from modicum.forms.minifloat import Layout
from modicum.numerics.grid import Grid, pieces

# Shares of the scale at which the largest weight of a group is the largest level, tried in search of the least weighted squared error.
_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 1.1, 1.2, 1.3, 1.4, 1.5)
# Exponents beside the one of the format's own rule.
_BESIDE = (0, 1, -1)
# Powers of two that the scales of a matrix are told over: few, so that weights which runtimes fuse have the same one.
_STEP, _USUAL = 8, 8
_FLOAT8 = torch.finfo(torch.float8_e4m3fn)
_BIAS = 127


def encode(placed: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Codes uint8 of the levels nearest to values in units of their scale; there is one zero, the positive one."""
    levels = layout.levels
    codes = torch.bucketize(placed.abs().contiguous(), (levels[1:] + levels[:-1]) / 2, out_int32=True).to(torch.uint8)
    return codes + len(levels) * ((placed < 0) & (codes > 0)).to(torch.uint8)


def shift_of(weight: torch.Tensor, top: float) -> int:
    """Power of two over which NVFP4's scales of ``weight`` are told, a multiple of eight: the usual one where E4M3 holds its largest scale."""
    largest, shift = float(weight.abs().max()) / top, _USUAL
    while largest * 2.0**shift > _FLOAT8.max / max(_SHARES) and shift > -_BIAS + _STEP:
        shift -= _STEP
    while 0 < largest * 2.0**shift < _FLOAT8.tiny and shift < _BIAS - _STEP:
        shift += _STEP
    return shift


def fit(
    weight: torch.Tensor, layout: Layout, dtype: torch.dtype, importance: torch.Tensor | None = None
) -> tuple[torch.Tensor, int]:  # fmt: skip
    """Scales (rows, groups) as stored, and the shift, for float32 ``weight`` (rows, columns) that is to come back in ``dtype``.

    Of several scales each group takes the one of least squared error, columns weighted by ``importance`` (columns,).
    """
    groups, counts = Grid(4, layout.group).grouped(weight), _counts(weight, layout.group, importance)
    shift = shift_of(weight, layout.top) if layout.stored != torch.uint8 else 0
    return torch.cat([_search(groups[piece], counts, layout, shift, dtype) for piece in pieces(groups)]), shift


def _counts(weight: torch.Tensor, group: int, importance: torch.Tensor | None) -> torch.Tensor:
    counts = (torch.ones(weight.shape[1]) if importance is None else importance)[None]
    found = Grid(4, group).grouped(counts).clone()
    if ragged := -weight.shape[1] % found.shape[2] if group < weight.shape[1] else 0:
        found[:, -1, -ragged:] = 0  # what pads a group has no say
    return found


def _search(groups: torch.Tensor, counts: torch.Tensor, layout: Layout, shift: int, dtype: torch.dtype) -> torch.Tensor:
    best, chosen = torch.full(groups.shape[:2], torch.inf), None
    for stored in _candidates(groups.abs().amax(2), layout, shift, dtype):
        step = layout.value(stored, shift)
        placed = groups / step.clamp_min(torch.finfo(torch.float32).tiny)[..., None]
        loss = ((layout.decode(encode(placed, layout)) - placed).square() * counts).sum(2) * step.square()
        better = loss < best
        best, chosen = torch.where(better, loss, best), stored if chosen is None else _where(better, stored, chosen)
    assert chosen is not None
    return chosen


def _where(better: torch.Tensor, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return torch.where(better, one.view(torch.uint8), other.view(torch.uint8)).view(one.dtype)


def _candidates(largest: torch.Tensor, layout: Layout, shift: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Scales to try as stored, for the largest magnitude of each group."""
    most = torch.finfo(dtype).max / layout.top
    if layout.stored == torch.uint8:
        least = max(-_BIAS, int(torch.tensor(torch.finfo(dtype).tiny).log2()))  # where a group is next to nothing
        rule = largest.clamp_min(2.0**least).log2().floor() - layout.levels[-1].log2().floor()
        high = int(torch.tensor(most, dtype=torch.float64).log2().floor())
        return [((rule + more).clamp(least, high) + _BIAS).to(torch.uint8) for more in _BESIDE]
    told = torch.ldexp(largest / layout.top, torch.tensor(shift))
    found = [(told * share).clamp_max(min(_FLOAT8.max, most * 2.0**shift)).to(torch.float8_e4m3fn) for share in _SHARES]
    over = [layout.value(stored, shift).double() > most for stored in found]  # rounded up beyond what the dtype holds: the one below
    return [_where(high, (stored.view(torch.uint8) - high.to(torch.uint8)).view(stored.dtype), stored) for stored, high in zip(found, over)]
