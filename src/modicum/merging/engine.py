"""The loop over tensors and their pieces: statistics first, then what is made, rounded once and written."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from modicum.core.errors import ModelError, quoted
from modicum.core.finite import finite
from modicum.core.progress import Quiet
from modicum.merging.job import Job, Place
from modicum.merging.looks import Looks
from modicum.merging.pieces import Sink
from modicum.merging.surveying import surveyed
from modicum.numerics.threads import single_threaded

Done = TypeVar("Done")


def run(job: Job, sink: Sink, shown: Quiet | None = None) -> list[dict[str, Any]]:
    """Make every tensor; a row for each with its norm, what changed, and how far the models agree on signs.

    Raises ``ModelError`` naming a tensor that a model lacks, that has another shape, or holds NaN or Inf.
    """
    for name in job.names:
        _require_alike(job, name)
    _require_no_more(job, set(job.names))
    shown = shown or Quiet()
    keep_freed()
    with single_threaded(), ThreadPoolExecutor(max(1, job.threads)) as pool:
        known = None
        if job.method.scope == "model":
            waiting = [name for name in job.names if _made_of_all(job, name)]
            if any(sink.done(name) is None for name in waiting):
                known = surveyed(job, waiting, lambda function, items: spread(pool, job.threads, function, items))
        shown.start("merging", len(job.names))
        rows = []
        for row in spread(pool, job.threads, lambda name: sink.done(name) or _made(job, name, known, sink), job.names):
            rows.append(row)
            shown.step()
    return rows


def spread(pool: ThreadPoolExecutor, threads: int, function: Callable[[Any], Done], items: Iterable[Any]) -> Iterator[Done]:
    """What a function gives of each item, in their order, made by all threads; few results wait at a time."""
    if threads == 1:
        yield from map(function, items)
        return
    waiting: deque[Future[Done]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > 2 * threads:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def keep_freed() -> None:
    """Have pieces take the memory of those before them: glibc maps anew what is larger than any block that was freed yet, a fault for each page."""
    torch.empty((32 << 20) - (64 << 10), dtype=torch.uint8, device="cpu")  # the largest that it counts


def _require_alike(job: Job, name: str) -> None:
    dtype, shape = job.base.entry(name)
    for source in job.others:
        other, theirs = source.entry(name)
        if theirs != shape:
            raise ModelError(
                f"{source.label}: {quoted(name)} must have the shape {list(shape)} of the base's, has {list(theirs)}. Merge models of one "
                "architecture and vocabulary."
            )
        if other.is_floating_point != dtype.is_floating_point:
            raise ModelError(f"{source.label}: {quoted(name)} must be numbers of the base's kind, {dtype}, is {other}.")
        for who, stored in ((job.base, dtype), (source, other)):
            if stored.itemsize < 2 and stored.is_floating_point:
                raise ModelError(f"{who.label}: {quoted(name)} must be stored in 16 bits or more to be merged, is {stored}. Dequantize it.")


def _require_no_more(job: Job, names: set[str]) -> None:
    """Raise ``ModelError`` for a tensor of a model that would be lost: the base has none of that name, nor one that it is tied to."""
    for source in job.others:
        for name in source.names():
            if name in names:
                continue
            try:
                _, shape = job.base.entry(name)
            except ModelError:
                shape = None
            size = math.prod(source.entry(name)[1])
            if shape != source.entry(name)[1] or not torch.equal(source.read(name, 0, size), source.read(job.base.stored(name), 0, size)):
                raise ModelError(f"{source.label}: holds the tensor {quoted(name)}, which the base lacks. Take this model as the base.")


def _made_of_all(job: Job, name: str) -> bool:
    """Whether a tensor is combined: whole numbers and what is kept are the base's, and one of no entries is as it is."""
    dtype, shape = job.base.entry(name)
    return dtype.is_floating_point and bool(math.prod(shape)) and not job.kept(name)


def _made(job: Job, name: str, known: Any, sink: Sink) -> dict[str, Any]:
    shape = job.base.entry(name)[1]
    told: dict[str, Any]
    if not _made_of_all(job, name):
        told = _copied(job, name, sink)
    else:
        if job.method.scope == "tensor":
            known = surveyed(job, [name], map)
        looks, look = Looks(len(job.others)), known is None and not job.method.shows(job.weights(name))
        for number, place in enumerate(job.pieces(name)):
            _, start, stop = place
            base, others = job.raw(place, base=job.method.reads_base)
            stored = None if known is not None else job.method.at_once(base, others, job.weights(name), job.stored(name))
            if stored is None or not finite(stored):
                base, others = job.widened(place, (base, others), look=look)
                stored = _combined(job, place, base, others, known)
            sink.put(name, start, stored.reshape(-1))
            if few := looks.few(number, stop - start):
                looks.add(base if job.method.reads_base else job.base.read(name, start, start + few), others, stored, few)
        told = {"name": name, "shape": list(shape), "weights": list(job.weights(name)), **looks.told(math.prod(shape))}
    sink.finish(name, told)
    return told


def _combined(job: Job, place: Place, base: torch.Tensor, others: list[torch.Tensor], known: Any) -> torch.Tensor:
    at = job.at(place, known)
    try:
        made = job.method.combine(base, others, at.weights, at)
    except torch.linalg.LinAlgError as error:
        raise ModelError(f"{at.name}: {job.method} cannot solve for it ({quoted(error)}). Merge it with another method.") from None
    stored = made.to(job.stored(at.name))
    if not finite(stored):
        job.read(place, base=job.method.reads_base)  # says which model it comes from
        raise ModelError(f"{quoted(at.name)}: what {job.method} makes of it must be finite, holds NaN or Inf. Use smaller weights.")
    return stored


def _copied(job: Job, name: str, sink: Sink) -> dict[str, Any]:
    dtype, shape = job.base.entry(name)
    value = job.base.read(name, 0, math.prod(shape))
    if not dtype.is_floating_point:
        for source in job.others:
            if not torch.equal(source.read(name, 0, math.prod(shape)).to(dtype), value):
                raise ModelError(
                    f"{source.label}: {quoted(name)} holds whole numbers, which cannot be merged, and differs from the base's."
                )
    sink.put(name, 0, value.to(job.stored(name)))
    return {"name": name, "shape": list(shape), "copied": True}
