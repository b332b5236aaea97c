"""Weights rounded column by column, alone or below each other, with what their rows lose."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from modicum.forms import Integer
from modicum.numerics.grid import Grid
from modicum.numerics.rounding import Rounding, Roundings
from modicum.numerics.solver import BlockFactor, Factor, laned, solve


def rounded(
    weight: torch.Tensor, rounding: Rounding, factor: Factor | BlockFactor, refit: tuple[torch.Tensor, float] | None = None
) -> tuple[Integer, torch.Tensor]:  # fmt: skip
    """The form of a float32 ``weight`` (rows, columns), and what its rows lose; ``refit``: each group's grid is fitted when its turn comes, by what
    columns are worth and how far its range may be clipped.
    """
    span, prepare = 0, None
    if refit is not None:
        span, prepare = rounding.width, partial(rounding.refit, dtype=rounding.scale.dtype, importance=refit[0], clip=refit[1])
    _, lost = solve(weight[:, rounding.order], factor, rounding.decide, span=span, prepare=prepare)
    return Integer(rounding.codes.T.contiguous(), rounding.scale, rounding.zero, rounding.grid.bits, rounding.width), lost


def rounded_together(
    weights: Sequence[torch.Tensor], grids: Sequence[Grid], fits: Sequence[tuple[torch.Tensor, torch.Tensor | None]], order: torch.Tensor,
    factor: Factor | BlockFactor,
) -> list[tuple[Integer, torch.Tensor]]:  # fmt: skip
    """The forms of float32 ``weights`` (rows, columns) on ``grids`` fitted before, and what their rows lose."""
    stacked = [laned(weight) for weight in weights]
    rounding = Roundings(grids, fits, stacked, order)
    _, lost = solve(torch.cat([weight[:, order] for weight in stacked]), factor, rounding.decide)
    heights = list(map(len, stacked))
    return [
        (Integer(codes[: len(weight)].contiguous(), scale, zero, grid.bits, grid.width(weight.shape[1])), each[: len(weight)])
        for grid, weight, codes, each, (scale, zero) in zip(grids, weights, rounding.codes.T.split(heights), lost.split(heights), fits)
    ]
