"""Weights rounded to blocks of llama.cpp's types: scales and minima are searched for, then every weight takes its nearest level."""

from __future__ import annotations

import itertools

import torch

from modicum.core.ggml import TYPES
from modicum.forms.ggml_blocks import LAYOUTS, Layout, put_together
from modicum.numerics.ggml_search import Groups, Steps, free, half, inverted, lowered, settled, settled_lower

# Weights that go through the cache together.
_PIECE = 1 << 16
# Tries of a search: by how many levels the range that they cover is narrower than the weights', and how many.
_CLIPPED = {
    **{"q1_0": (0.0, 0.0, 1), "q3_k": (-0.25, 1.25, 3), "q4_0": (-0.5, 2.0, 5), "q5_0": (-0.5, 2.0, 5), "q6_k": (-1.0, 3.0, 5)},
    **{"q8_0": (-0.5, 1.0, 3), "q2_k": (0.0, 0.45, 4), "q4_1": (-0.5, 1.5, 5), "q5_1": (-0.5, 1.5, 5)},
    **{"iq2_s": (0.0, 1.0, 3), "iq3_s": (-0.5, 1.0, 3)},
}
_EVEN, _LOWERED = (-0.5, 2.0, 8), (-0.35, 1.5, 4)
# What a column counts at least, relative to the mean: one whose inputs were always zero is rounded too.
_LEAST = 1e-6


def encode(weight: torch.Tensor, name: str, importance: torch.Tensor | None = None) -> torch.Tensor:
    """Blocks uint8 (rows, bytes of a row) of type ``name`` near float32 ``weight`` (rows, columns).

    The squared error is as small as a search makes it, each column weighted by ``importance`` (columns,). A piece of rows at a time.
    """
    type, layout = TYPES[name], LAYOUTS[name]
    found = torch.empty(len(weight), type.row_bytes(weight.shape[1]), dtype=torch.uint8)
    counts = _counted(weight.shape[1], importance).view(-1, layout.columns).T
    groups, done = None, 0
    for rows in weight.split(max(1, _PIECE // weight.shape[1])):
        if groups is None or groups.values.numel() != rows.numel():
            groups = Groups(layout, rows.numel() // layout.columns, rows.numel() // type.columns)
            groups.counts.copy_(counts.repeat(1, len(rows)))
        groups.values.copy_(rows.reshape(-1, layout.columns).T)
        found[done : done + len(rows)] = _encoded(groups, name).view(len(rows), -1)
        done += len(rows)
    return found


def _counted(columns: int, importance: torch.Tensor | None) -> torch.Tensor:
    if importance is None:
        return torch.ones(columns)
    mean = float(importance.double().mean())
    return (importance.float() / mean).clamp_min_(_LEAST) if mean > 0 else torch.ones(columns)


def _encoded(groups: Groups, name: str) -> torch.Tensor:
    """Blocks of a piece."""
    layout = groups.layout
    parts = _free(groups, name) if not layout.scales else _of_steps(_settled(groups, name), layout)
    levels = groups.levels(parts.pop("inverse"), parts.pop("lifted", None))
    codes = torch.bucketize(levels, torch.tensor(layout.table, dtype=torch.float32)) if layout.table else levels.add_(layout.zero)
    parts["codes"] = codes.to(torch.uint8).T.reshape(groups.blocks, -1)
    return put_together(name, parts)


def _tries(name: str, layout: Layout) -> list[float]:
    """Shares of the range, 1 for the whole."""
    low, high, count = _CLIPPED.get(name, _LOWERED if layout.least else _EVEN)
    half_range = (layout.codes - 1) / 2 if layout.least else layout.codes / 2
    clipped = torch.linspace(low, high, count)
    return (1 - clipped / half_range if layout.least else half_range / (half_range + clipped)).tolist()


def _free(groups: Groups, name: str) -> dict[str, torch.Tensor]:
    """Parts of types whose scales are free, and what their values are multiplied by and lifted by."""
    shares = _tries(name, groups.layout)
    if not groups.layout.least:
        step = half(free(groups, shares, 1)[0])
        return {"step": step.half(), "inverse": inverted(step)}
    scale, least, _ = lowered(groups, list(itertools.product(shares, shares)), 2)
    step, least = half(scale), least.half().float()
    return {"step": step.half(), "least": (-least).half(), "inverse": inverted(step), "lifted": least * inverted(step)}


def _settled(groups: Groups, name: str) -> Steps:
    shares = _tries(name, groups.layout)
    if not groups.layout.least:
        scale, curvature = free(groups, shares, 1)
        return settled(groups, scale, curvature, 1)
    scale, _, sums = lowered(groups, list(itertools.product(shares, shares)), 2)
    return settled_lower(groups, scale, sums, 2)


def _of_steps(steps: Steps, layout: Layout) -> dict[str, torch.Tensor]:
    """As ``_free``, of types whose scales are whole numbers of steps."""
    inverse = inverted(steps.step[:, None] * steps.whole).flatten()
    parts = {"step": (steps.step / layout.unit).half(), "inverse": inverse}
    sides = [steps.whole + layout.bias]
    if steps.least is not None and steps.below is not None:
        parts |= {"least": steps.least.half(), "lifted": (steps.least[:, None] * steps.below).flatten() * inverse}
        sides.append(steps.below)
    return parts | {"sides": torch.cat(sides, 1).to(torch.uint8)}
