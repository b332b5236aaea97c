"""Neighbouring columns that take a point of a list together: the nearest one, by columns' counts or by a whole metric."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from modicum.forms.ggml_lattice import Lattice

# Points that are compared at a time, in numbers: what stays in the cache.
_PIECE = 1 << 17


def together(lattice: Lattice, placed: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Levels (columns, groups) whose sizes are points of the lattice: those that lie nearest to ``placed``, columns counted by ``counts``."""
    apart = lambda each: each.view(-1, lattice.width, each.shape[1]).movedim(1, 2).reshape(-1, lattice.width)
    aim, weight = apart(placed), apart(counts)
    index = _nearest(_squares(lattice), torch.cat([weight, aim.abs() * weight * -2], 1))
    levels = torch.copysign(lattice.points[index], aim)
    return levels.view(-1, placed.shape[1], lattice.width).movedim(2, 1).reshape(placed.shape).contiguous()


def nearest_under(lattice: Lattice, aim: torch.Tensor, metric: torch.Tensor) -> torch.Tensor:
    """Levels (width, rows) with the signs of ``aim`` (width, rows) that are nearest to it under ``metric`` (width, width): least ``eᵀ A e``."""
    signs = torch.where(aim < 0, -1.0, 1.0)
    one, other = _pairs(lattice.width)
    double = metric[one, other] * torch.where(one == other, 1.0, 2.0)
    index = _nearest(_products(lattice), torch.cat([double[:, None] * signs[one] * signs[other], signs * (metric @ aim) * -2]).T)
    return (lattice.points[index].T * signs).contiguous()


def _nearest(table: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
    """The point for each row of ``told`` (rows, numbers) whose column of ``table`` (numbers, points) gives the least product."""
    found = np.empty(len(told), np.int64)
    step = max(1, _PIECE // table.shape[1])
    room = torch.empty(step, table.shape[1])
    for low in range(0, len(told), step):
        some = told[low : low + step]
        found[low : low + step] = torch.mm(some, table, out=room[: len(some)]).numpy().argmin(1)
    return torch.from_numpy(found)


@cache
def _squares(lattice: Lattice) -> torch.Tensor:
    return torch.cat([lattice.points.square(), lattice.points], 1).T.contiguous()


@cache
def _products(lattice: Lattice) -> torch.Tensor:
    one, other = _pairs(lattice.width)
    return torch.cat([lattice.points[:, one] * lattice.points[:, other], lattice.points], 1).T.contiguous()


@cache
def _pairs(width: int) -> tuple[torch.Tensor, torch.Tensor]:
    one, other = torch.triu_indices(width, width)
    return one, other
