"""The factorization of a covariance of inputs that column solvers share: one for all methods and all bits of a stage."""

from __future__ import annotations

import torch

from modicum.core.blocks import Blocks, spans
from modicum.core.unit import Stats
from modicum.numerics.solver import BlockFactor, Factor, factorize


def factored(
    stats: Stats, damping: float, order: str = "static", group: int = 1, lot: int = 1
) -> tuple[torch.Tensor, Factor | BlockFactor]:
    """The order of columns, by falling input energy (``static``) or as they stand (``none``), and the factorization in it.

    Neighbours of a ``lot`` of columns stay so. Of a covariance in blocks none cuts a ``group`` of columns. More damping than asked for is an event.
    """
    assert stats.moment is not None
    moment = stats.moment.aligned(group) if isinstance(stats.moment, Blocks) else stats.moment
    key = ("factor", damping, order, group if moment is not stats.moment else 1, lot)
    if key not in stats.cache:
        lots = lambda square: square.diagonal().view(-1, lot).sum(1).argsort(descending=True, stable=True)
        falling = lambda square: (lots(square)[:, None] * lot + torch.arange(lot)).flatten()
        orders = [falling(square) if order == "static" else torch.arange(len(square)) for _, square in spans(moment)]
        columns = torch.cat([each.start + own for (each, _), own in zip(spans(moment), orders)])
        stats.cache[key] = (columns, factorize(moment, damping, columns))
    columns, factor = stats.cache[key]
    told = f"damping raised {factor.retries} times to {factor.damping:g}"
    if factor.retries and told not in stats.events:
        stats.events.append(told)
    return columns, factor
