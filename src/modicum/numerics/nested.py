"""Scales of groups as whole numbers under one scale for each row; codes follow."""

from __future__ import annotations

import torch

from modicum.core.blocks import Blocks
from modicum.forms.integer import Integer
from modicum.forms.nested import Nested
from modicum.numerics.descent import descend
from modicum.numerics.grid import Grid, least_scale

# Shares of the finest scale of a row that are tried, and times that all codes move once scales are what is stored.
_SHARES, _SWEEPS = (1.0, 0.97, 0.94, 0.9, 0.86, 0.82), 2


def nested(form: Integer, weight: torch.Tensor, scales: int, moment: torch.Tensor | Blocks | None = None, damping: float = 0.0) -> Nested:
    """Scales of ``form``, a grid for float32 ``weight`` (rows, columns), in ``scales`` bits each, and codes that suit them: the nearest, or under the
    covariance ``moment`` plus ``damping`` times its mean diagonal what coordinate descent makes of those that were there.

    A row's scale is the one of those tried whose multiples are nearest to its groups' scales.
    """
    top = 2 ** (scales - 1) - 1
    wanted = form.scale.float()
    largest = wanted.abs().amax(1, keepdim=True) / top
    best, outer, steps = torch.full_like(largest, torch.inf), largest, wanted
    for share in _SHARES:
        tried = (largest / share).clamp_min(least_scale(form.dtype)).to(form.dtype).float()
        whole = (wanted / tried).round().clamp(-top, top)
        whole = torch.where(whole == 0, torch.ones_like(whole).copysign(wanted), whole)  # a scale of zero would lose its group
        lost = (whole * tried - wanted).square().sum(1, keepdim=True)
        outer, steps = torch.where(lost < best, tried, outer), torch.where(lost < best, whole, steps)
        best = torch.minimum(lost, best)
    made = Nested.of(form, steps.to(torch.int8), outer.to(form.dtype), scales)
    symmetric = form.zero is None
    grid = Grid(form.bits, form.group, symmetric)
    if moment is None:
        plain = grid.encode(weight, made.plain.scale, form.zero)
    else:
        (plain,), _ = descend([weight], [grid], [made.plain], moment, damping, _SWEEPS, held=True)
    return Nested.of(plain, made.steps, made.outer, scales)
