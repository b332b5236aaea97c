"""What a method must know of a whole before it sees a piece, measured over pieces in their order."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch

from modicum.merge._family import Largest, Survey, Total
from modicum.merging.job import Job, Place
from modicum.merging.selection import largest

Done = TypeVar("Done")
Spread = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
"""What a function gives of each item, in their order: ``map``, or that by several threads."""

_RUN = 16  # one part in so many of each piece is read for a sample, so that files are read no third time


def surveyed(job: Job, names: Sequence[str], spread: Spread) -> Any:
    """What the method learns of these tensors together."""
    entries = sum(math.prod(job.base.entry(name)[1]) for name in names)
    asking: Survey = job.method.survey(len(job.others), entries)
    places = [place for name in names for place in job.pieces(name)]
    known: Any = None
    try:
        request = next(asking)
        while True:
            if isinstance(request, Total):
                answer = _summed(_over(job, request, places, spread, lambda found: found))
            else:
                pieces = functools.partial(_pieces, job, request, places, spread)
                answer = largest(pieces, request.counts, entries)
            request = asking.send(answer)
    except StopIteration as ended:
        known = ended.value
    return known


def _over(
    job: Job, request: Total | Largest, places: Iterable[Place], spread: Spread, function: Callable[[torch.Tensor], Done], stride: int = 1
) -> Iterable[Done]:
    def one(place: Place) -> Done:
        base, others = job.read(place, stride=stride)
        return function(request.values(base, others, job.at(place, None)))

    return spread(one, places)


def _pieces(
    job: Job, request: Largest, places: Sequence[Place], spread: Spread, function: Callable[[Any], Done], stride: int = 1
) -> Iterable[Done]:
    """A function of the values (rows, entries) of every piece, or of every so many entries of it."""
    parts = places
    if stride >= 2 * _RUN:
        stride, parts = stride // _RUN, [_part(place, number) for number, place in enumerate(places)]
    return _over(job, request, parts, spread, lambda found: function(found.reshape(found.shape[0], -1).numpy()), stride)


def _part(place: Place, number: int) -> Place:
    """One part of a piece, another one in each."""
    name, start, stop = place
    size = -(-(stop - start) // _RUN)
    begin = start + number * 7 % _RUN * size
    return (name, begin, min(stop, begin + size)) if begin < stop else (name, start, min(stop, start + size))


def _summed(parts: Iterable[torch.Tensor]) -> torch.Tensor:
    total: torch.Tensor | None = None
    for part in parts:
        total = part.clone() if total is None else total.add_(part)
    assert total is not None
    return total
