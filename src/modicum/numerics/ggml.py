"""Blocks of llama.cpp's types fitted to weights: scales, minima and codes of least squared error."""

from __future__ import annotations

import torch

from modicum.core.ggml import TYPES
from modicum.forms.ggml_blocks import LAYOUTS, Layout, put_together

# Weights that go through the cache together.
_PIECE = 1 << 16


def encode(weight: torch.Tensor, name: str) -> torch.Tensor:
    """Blocks uint8 (rows, bytes of a row) near float32 ``weight`` (rows, columns)."""
    type = TYPES[name]
    found = torch.empty(len(weight), type.row_bytes(weight.shape[1]), dtype=torch.uint8)
    step = max(1, _PIECE // weight.shape[1])
    for low in range(0, len(weight), step):
        rows = slice(low, low + step)
        found[rows] = _encoded(weight[rows].reshape(-1, type.columns), name).view(-1, found.shape[1])
    return found


def _encoded(blocks: torch.Tensor, name: str) -> torch.Tensor:
    """Blocks that cover the range of ``blocks`` (count, columns)."""
    layout = LAYOUTS[name]
    groups = blocks.view(len(blocks), -1, layout.columns)
    low, high = groups.amin(2), groups.amax(2)
    parts = {}
    if layout.least:
        least = low.clamp_max(0) if layout.scales else low
        scale = (high - least) / (layout.codes - 1)
    else:
        scale, least = torch.where(high > -low, high, low) / _farthest(layout), torch.zeros_like(low)
    if not layout.scales:
        parts["step"] = scale[:, 0].half()
        scale = parts["step"].float()[:, None]
        if layout.least:
            parts["least"] = least[:, 0].half()
            least = parts["least"].float()[:, None]
    else:
        top = layout.scales - 1 - layout.bias
        sides = []
        parts["step"] = (scale.abs().amax(1) / top).half()
        step = parts["step"].float()[:, None]
        whole = _divided(scale, step).round_().clamp_(-layout.bias, top)
        sides.append(whole + layout.bias)
        scale = step * whole
        if layout.least:
            parts["least"] = (-least.amin(1) / top).half()
            step = parts["least"].float()[:, None]
            whole = _divided(-least, step).round_().clamp_(0, top)
            sides.append(whole)
            least = -(step * whole)
        parts["sides"] = torch.cat(sides, 1).to(torch.uint8)
    placed = _divided(groups - least[..., None] if layout.least else groups, scale[..., None])
    parts["codes"] = nearest(layout, placed).flatten(1)
    return put_together(name, parts)


def nearest(layout: Layout, placed: torch.Tensor) -> torch.Tensor:
    """Codes uint8 whose levels are nearest to ``placed``."""
    if layout.table:
        table = torch.tensor(layout.table, dtype=torch.float32)
        return torch.bucketize(placed, (table[1:] + table[:-1]) / 2).to(torch.uint8)
    return (placed + layout.zero).round_().clamp_(0, layout.codes - 1).to(torch.uint8)


def _farthest(layout: Layout) -> float:
    """The level that the largest weight of a block takes."""
    return min(layout.table) if layout.table else float(-layout.zero)


def _divided(values: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    """Quotients, zero where the divisor is."""
    return torch.where(by == 0, 0.0, values / by)
