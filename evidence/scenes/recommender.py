"""What users took of items, drawn with stated structure: no package in reach ships such a table."""

from __future__ import annotations

import torch

USERS, ITEMS, _TASTES, _TAKEN = 400, 500, 8, 30


def interactions(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Bool tables (users, items) of what is known of each user and what is held out, a tenth.

    A user takes thirty items, drawn by tastes of rank eight, an item's popularity, which falls as one over its rank, and chance.
    """
    draw = torch.Generator().manual_seed(1000 + seed)
    users, items = (torch.randn(count, _TASTES, generator=draw) for count in (USERS, ITEMS))
    popular = -torch.log1p(torch.randperm(ITEMS, generator=draw).float())
    scores = users @ items.T * (2 / _TASTES**0.5) + popular
    noise = -torch.log(-torch.log(torch.rand(USERS, ITEMS, generator=draw).clamp(1e-9, 1 - 1e-7)))
    taken = (scores + noise).topk(_TAKEN).indices
    order = torch.rand(USERS, _TAKEN, generator=draw).argsort(1)
    hidden = taken.gather(1, order[:, : _TAKEN // 10])
    table = lambda places: torch.zeros(USERS, ITEMS, dtype=torch.bool).scatter(1, places, True)
    return table(taken) & ~table(hidden), table(hidden)
