"""Sixteen levels from -1 to 1: how values meet them, and how scales are found and put into eight bits."""

from __future__ import annotations

from functools import cache

import torch

from modicum.forms.blockwise import LEVELS, OUTER, Doubled, steps
from modicum.numerics.grid import Grid, pieces
from modicum.numerics.threads import single_threaded

# Shares of a group's largest magnitude that are tried as its scale.
_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
_LEAST = 1e-38


@cache
def _rising(type: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes in the order of their levels, and the middles between neighbours."""
    order = LEVELS[type].argsort(stable=True)
    levels = LEVELS[type][order]
    return order.to(torch.uint8), (levels[1:] + levels[:-1]) / 2


def encode(placed: torch.Tensor, type: str) -> torch.Tensor:
    """Codes uint8 of the levels nearest to values in units of their scale; of two as near, the lower."""
    order, middles = _rising(type)
    return order[torch.bucketize(placed.contiguous(), middles, out_int32=True)]


def decode(codes: torch.Tensor, type: str) -> torch.Tensor:
    """What codes stand for, float32, in units of their scale."""
    return LEVELS[type][codes.int()]


def largest(weight: torch.Tensor, block: int) -> torch.Tensor:
    """The largest magnitude (rows, groups) of each group of a row, under which every weight has a level."""
    return Grid(4, block).grouped(weight).abs().amax(2)


def placed(weight: torch.Tensor, scale: torch.Tensor, block: int) -> torch.Tensor:
    """Float32 ``weight`` (rows, columns) in units of its scales (rows, groups), as bitsandbytes computes them."""
    inverse = 1.0 / scale.clamp_min(_LEAST)
    return (weight * inverse.repeat_interleave(block, 1)[:, : weight.shape[1]]).clamp(-1, 1)


def fit(weight: torch.Tensor, type: str, block: int, importance: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Scales (rows, groups) of least squared error for float32 ``weight`` (rows, columns) that is to come back in ``dtype``, columns
    weighted by ``importance`` (columns,).

    They have eight significant bits: bitsandbytes rounds them so on processors with units for bfloat16, which then computes what others do.
    """
    groups, counts = Grid(4, block).grouped(weight), Grid(4, block).grouped(importance[None]).clone()
    if ragged := -weight.shape[1] % groups.shape[2]:
        counts[:, -1, -ragged:] = 0  # what pads a group has no say
    return torch.cat([_search(groups[piece], counts, type, torch.finfo(dtype).max) for piece in pieces(groups)])


def _search(groups: torch.Tensor, counts: torch.Tensor, type: str, most: float) -> torch.Tensor:
    top = groups.abs().amax(2)
    best, chosen = torch.full(top.shape, torch.inf), top
    for share in _SHARES:
        scale = (top * share).bfloat16().float().clamp_max(most)
        found = groups / scale.clamp_min(_LEAST)[..., None]
        loss = ((decode(encode(found, type), type) - found).square() * counts).sum(2) * scale.square()
        best, chosen = torch.where(loss < best, loss, best), torch.where(loss < best, scale, chosen)
    return chosen


def doubled(scale: torch.Tensor) -> Doubled:
    """Scales (rows, groups) in eight bits: what each is above their mean, in units of the largest such among 256."""
    flat = scale.flatten()
    with single_threaded():
        offset = flat.mean()
    if not torch.isfinite(offset):
        offset = flat.double().mean().float()
    filled = torch.nn.functional.pad(flat - offset, (0, -len(flat) % OUTER)).view(-1, OUTER)
    outer = filled.abs().amax(1)
    above = filled * (1.0 / outer.clamp_min(_LEAST))[:, None]
    known = steps()
    codes = torch.bucketize(above.flatten()[: len(flat)], (known[1:] + known[:-1]) / 2, out_int32=True)
    return Doubled(codes.to(torch.uint8).view(scale.shape), outer, offset.reshape(1))
