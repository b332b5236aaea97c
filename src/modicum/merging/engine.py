"""The loop over tensors and their pieces: statistics first, then what is made, rounded once and written."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch

from modicum.core.errors import ModelError, SettingError, quoted
from modicum.core.finite import finite
from modicum.core.progress import Quiet
from modicum.merge._family import At, Largest, Merge, Survey, Total
from modicum.merging.pieces import Sink
from modicum.merging.selection import largest
from modicum.merging.sources import Source
from modicum.numerics.threads import single_threaded

PIECE = 1 << 18  # entries that are made at a time
_SHARE = 64  # of so many entries one is looked at for what the receipt tells of a tensor
Done = TypeVar("Done")


@dataclass(frozen=True)
class Job:
    """What is merged: a method on a base and models, their weights by tensor, and how it is computed.

    ``weights`` gives them for a tensor's name; ``beside`` statistics by model; ``dtype`` that is stored, the base's where None.
    """

    method: Merge
    base: Source
    others: tuple[Source, ...]
    weights: Callable[[str], tuple[float, ...]]
    seed: int = 0
    dtype: torch.dtype | None = None
    beside: tuple[Source, ...] = ()
    kept: Callable[[str], bool] = lambda name: False
    threads: int = field(default_factory=lambda: torch.get_num_threads())

    def stored(self, name: str) -> torch.dtype:
        """The dtype that a tensor is stored in."""
        dtype = self.base.entry(name)[0]
        return self.dtype if self.dtype is not None and dtype.is_floating_point else dtype

    def computed(self, name: str) -> torch.dtype:
        """The dtype that a tensor is computed in: wider than all it is made of and rounded to."""
        dtypes = [self.stored(name), *(source.entry(name)[0] for source in (self.base, *self.others))]
        return torch.float64 if max(dtype.itemsize for dtype in dtypes) > 2 else torch.float32


def run(job: Job, sink: Sink, shown: Quiet | None = None) -> list[dict[str, Any]]:
    """Make every tensor; a row for each with its norm, what changed, and how far the models agree on signs.

    Raises ``ModelError`` naming a tensor that a model lacks, that has another shape, or holds NaN or Inf.
    """
    names = job.base.names()
    floating = [name for name in names if job.base.entry(name)[0].is_floating_point]
    for name in names:
        _require_alike(job, name)
    _require_no_more(job, set(names))
    shown = shown or Quiet()
    with single_threaded(), ThreadPoolExecutor(max(1, job.threads)) as pool:
        known = None
        if job.method.scope == "model":
            waiting = [name for name in floating if not job.kept(name)]
            if any(sink.done(name) is None for name in waiting):
                known = _surveyed(job, waiting, lambda function, items: spread(pool, job.threads, function, items))
        shown.start("merging", len(names))
        rows = []
        for row in spread(pool, job.threads, lambda name: sink.done(name) or _made(job, name, known, sink), names):
            rows.append(row)
            shown.step()
    return rows


def spread(pool: ThreadPoolExecutor, threads: int, function: Callable[[Any], Done], items: Iterable[Any]) -> Iterator[Done]:
    """What a function gives of each item, in their order, made by all threads; few results wait at a time."""
    waiting: deque[Future[Done]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > 2 * threads:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


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
        if dtype.itemsize < 2 and dtype.is_floating_point:
            raise ModelError(f"{source.label}: {quoted(name)} must be stored in 16 bits or more to be merged, is {dtype}. Dequantize it.")


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


def _ranges(job: Job, name: str) -> list[tuple[int, int]]:
    size = math.prod(job.base.entry(name)[1])
    step = PIECE if job.method.pieces else max(1, size)
    return [(start, min(size, start + step)) for start in range(0, size, step)] or [(0, 0)]


def _read(job: Job, name: str, start: int, stop: int, *, base: bool = True) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The base's entries and the models', as they are computed with; the base's place is taken by the first model's where it is not read."""
    dtype = job.computed(name)
    values = []
    for source in (job.base, *job.others) if base else job.others:
        raw = source.read(name, start, stop)
        wide = raw.to(dtype)
        if not math.isfinite(float(wide.sum())) and not finite(wide):
            raise ModelError(f"{source.label}: {quoted(name)} must be finite, holds NaN or Inf. Merge models that are whole.")
        values.append(wide if job.method.pieces else wide.reshape(job.base.entry(name)[1]))
    return (values[0], values[1:]) if base else (values[0], values)


def _at(job: Job, name: str, start: int, stop: int, known: Any) -> At:
    shape = job.base.entry(name)[1]
    beside = tuple(_statistics(job, source, name, start, stop) for source in job.beside)
    return At(name, shape, job.weights(name), _named(job), start, job.seed, known, beside, _depth(job, name))


def _statistics(job: Job, source: Source, name: str, start: int, stop: int) -> Mapping[str, torch.Tensor]:
    there, found = set(source.names()), {}
    for kind in job.method.statistics:
        key = f"{name}/{kind}"
        if key in there:
            shape = source.entry(key)[1]
            flat = source.read(key, start, stop) if job.method.pieces else source.read(key, 0, math.prod(shape)).reshape(shape)
            found[kind] = flat
    return found


def _named(job: Job) -> tuple[str, ...]:
    """Models by what they hold; one that is listed again is another one."""
    met: dict[str, int] = {}
    found = []
    for source in job.others:
        met[source.digest] = met.get(source.digest, 0) + 1
        found.append(f"{source.digest}/{met[source.digest]}")
    return tuple(found)


def _depth(job: Job, name: str) -> float:
    """How deep in the model a tensor stands, from 0 for the first to 1 for the last."""
    places = _places(tuple(job.base.names()))
    return places[name] / max(1, len(places) - 1)


_PLACES: dict[tuple[str, ...], dict[str, int]] = {}


def _places(names: tuple[str, ...]) -> dict[str, int]:
    if names not in _PLACES:
        _PLACES.clear()
        natural = lambda name: [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]
        _PLACES[names] = {name: place for place, name in enumerate(sorted(names, key=natural))}
    return _PLACES[names]


def _surveyed(job: Job, names: Sequence[str], spread: Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]) -> Any:
    """What the method learns of these tensors together, piece by piece in their order."""
    entries = sum(math.prod(job.base.entry(name)[1]) for name in names)
    asking: Survey = job.method.survey(len(job.others), entries)
    places = [(name, *each) for name in names for each in _ranges(job, name)]
    wide = max((job.computed(name) for name in names), key=lambda dtype: dtype.itemsize, default=torch.float32)
    state: dict[str, Any] = {"known": None}

    def over(request: Total | Largest, function: Callable[[torch.Tensor], Done]) -> Iterable[Done]:
        def one(place: tuple[str, int, int]) -> Done:
            name, start, stop = place
            base, others = _read(job, name, start, stop)
            return function(request.values(base, others, _at(job, name, start, stop, state["known"])))

        return spread(one, places)

    try:
        request = next(asking)
        while True:
            if isinstance(request, Total):
                answer = _summed(over(request, lambda found: found))
            else:
                rows = _rows(job, request, places[0])
                pieces = lambda function, asked=request: over(asked, lambda found: function(found.to(wide).reshape(found.shape[0], -1)))
                answer = largest(pieces, rows, request.counts, entries)
            request = asking.send(answer)
    except StopIteration as ended:
        return ended.value


def _rows(job: Job, request: Largest, place: tuple[str, int, int]) -> int:
    base, others = _read(job, *place)
    return request.values(base, others, _at(job, *place, None)).shape[0]


def _summed(parts: Iterable[torch.Tensor]) -> torch.Tensor:
    total: torch.Tensor | None = None
    for part in parts:
        total = part.clone() if total is None else total.add_(part)
    assert total is not None
    return total


def _made(job: Job, name: str, known: Any, sink: Sink) -> dict[str, Any]:
    dtype, shape = job.base.entry(name)
    told: dict[str, Any]
    if not dtype.is_floating_point or job.kept(name):
        told = _copied(job, name, sink)
    else:
        if job.method.scope == "tensor":
            known = _surveyed(job, [name], map)
        looks = _Looks()
        for start, stop in _ranges(job, name):
            base, others = _read(job, name, start, stop, base=job.method.reads_base)
            at = _at(job, name, start, stop, known)
            try:
                made = job.method.combine(base, others, at.weights, at)
            except torch.linalg.LinAlgError as error:
                raise ModelError(f"{name}: {job.method} cannot solve for it ({quoted(error)}). Merge it with another method.") from None
            stored = made.to(job.stored(name))
            if not finite(stored):
                raise ModelError(f"{quoted(name)}: what {job.method} makes of it must be finite, holds NaN or Inf. Use smaller weights.")
            sink.put(name, start, stored.reshape(-1))
            if not job.method.reads_base:
                few = min(stop - start, max(1, (stop - start) // _SHARE))
                base = job.base.read(name, start, start + few).to(base.dtype)
            looks.add(base, others, stored)
        told = {"name": name, "shape": list(shape), "weights": list(job.weights(name)), **looks.told()}
    sink.finish(name, told)
    return told


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


@dataclass
class _Looks:
    """What the first entries of each piece tell of a tensor: sizes of the base and of the change, and how often all models move alike."""

    base: float = 0.0
    change: float = 0.0
    seen: int = 0
    alike: int = 0
    moved: int = 0

    def add(self, base: torch.Tensor, others: Sequence[torch.Tensor], made: torch.Tensor) -> None:
        """Look at one piece."""
        few = max(1, made.numel() // _SHARE)
        old = base.reshape(-1)[:few].double()
        self.base += float(old.square().sum())
        self.change += float((made.reshape(-1)[:few].double() - old).square().sum())
        self.seen += len(old)
        signs = torch.stack([(other.reshape(-1)[:few].double() - old).sign_() for other in others])
        self.moved += int((signs.abs().sum(0) == len(signs)).sum())
        self.alike += int((signs.sum(0).abs() == len(signs)).sum())

    def told(self) -> dict[str, Any]:
        """Norms of the entries looked at, of the change relative to the base's, and the share of entries that all move on which signs agree."""
        return {
            "looked_at": self.seen, "norm": math.sqrt(self.base), "change": math.sqrt(self.change),
            "agreement": self.alike / self.moved if self.moved else None,
        }  # fmt: skip


def ordered(
    method: Merge, others: Sequence[Source], weights: Sequence[float], beside: Sequence[Source] = ()
) -> tuple[tuple[Source, ...], tuple[float, ...], tuple[Source, ...]]:
    """Models, weights and statistics in an order that depends on what they hold, where the method says that theirs does not count.

    Sums are then the same for each order.
    """
    places = list(range(len(others)))
    if not method.ordered:
        places.sort(key=lambda place: (others[place].digest, weights[place], beside[place].digest if beside else ""))
    take = lambda items: tuple(items[place] for place in places)
    return take(others), take(weights), take(beside) if beside else ()


def require_memory(job: Job, free: int) -> Job:
    """The same with no more threads than memory holds tensors for. Raises ``SettingError`` where not even one fits."""
    sizes = (math.prod(job.base.entry(name)[1]) for name in job.base.names())
    largest_one = max((min(size, PIECE) if job.method.pieces else size for size in sizes), default=1)
    need = largest_one * 8 * 4 * (len(job.others) + 2)
    if need > free:
        raise SettingError(
            f"--ram: {job.method} needs {need / 1e6:.0f} MB for its largest tensor, and {free / 1e6:.0f} MB are free. Give more, or another method."
        )
    threads = max(1, min(job.threads, free // need))
    return replace(job, threads=threads)
