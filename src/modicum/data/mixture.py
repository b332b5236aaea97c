"""Windows of several sources of text at once, by weight."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from modicum.data.text import windows


def apportioned(count: int, weights: list[float]) -> list[int]:
    """So many things by weight, in whole numbers: what is left after rounding down goes to the largest remainders, the first of equal ones first."""
    exact = [count * weight / sum(weights) for weight in weights]
    shares = [math.floor(each) for each in exact]
    for place in sorted(range(len(exact)), key=lambda place: shares[place] - exact[place])[: count - sum(shares)]:
        shares[place] += 1
    return shares


def mixed(streams: list[Tensor], weights: list[float], tokens: int, count: int, seed: int) -> tuple[Tensor, list[int]]:
    """``count`` windows of ``tokens`` tokens, of each stream its share, of several in an order that the seed draws; and how many came of each.

    A stream that has fewer gives all of its own, and nobody makes up for them: the mixture is then another than was asked for, which the numbers
    tell.
    """
    shares = apportioned(count, weights)
    parts = [windows(stream, tokens, share, torch.Generator().manual_seed(seed)) for stream, share in zip(streams, shares) if share]
    given = iter(map(len, parts))
    rows = torch.cat(parts)
    if len(streams) > 1:
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
    return rows, [next(given) if share else 0 for share in shares]
