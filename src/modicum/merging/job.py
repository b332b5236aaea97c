"""What is merged and how it is computed: a method on a base and models, read piece by piece."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from modicum.core.errors import ModelError, SettingError, quoted
from modicum.core.finite import finite
from modicum.core.tensorformat import Room
from modicum.merge._family import At, Merge
from modicum.merging.sources import Source

PIECE = 1 << 17  # entries that are made at a time: few enough for a processor's cache, many enough that calls cost little
_LEAST = 1 << 13  # entries of the shortest piece that is worth its calls
_AGAIN = 1.05  # of what a process holds at this place, how much another one may
_FIXED = 18 << 20  # bytes of libraries that are loaded on the way, of samples, and of what is held of a count
# Of a piece for each model, and of a whole tensor, as measured: small ones with what the allocator cannot use again.
_ARRAYS, _WHOLE = 14, 8
Place = tuple[str, int, int]
"""A tensor's name, and from which entry to which."""


@dataclass(frozen=True)
class Job:
    """What is merged: a method on a base and models, their weights by tensor, and how it is computed.

    ``weights`` gives them for a tensor's name; ``beside`` statistics by model; ``dtype`` that is stored, the base's where None;
    ``piece`` how many entries are made at a time, as many as ``PIECE`` where 0.
    """

    method: Merge
    base: Source
    others: tuple[Source, ...]
    weights: Callable[[str], tuple[float, ...]]
    seed: int = 0
    dtype: torch.dtype | None = None
    beside: tuple[Source, ...] = ()
    kept: Callable[[str], bool] = lambda name: False
    piece: int = 0
    threads: int = field(default_factory=lambda: torch.get_num_threads())

    @cached_property
    def names(self) -> list[str]:
        """All tensors of the result."""
        return self.base.names()

    @cached_property
    def _depths(self) -> dict[str, float]:
        natural = lambda name: [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]
        return {name: place / max(1, len(self.names) - 1) for place, name in enumerate(sorted(self.names, key=natural))}

    @cached_property
    def _models(self) -> tuple[str, ...]:
        """Models by what they hold; one that is listed again is another one."""
        met: dict[str, int] = {}
        found = []
        for source in self.others:
            met[source.digest] = met.get(source.digest, 0) + 1
            found.append(f"{source.digest}/{met[source.digest]}")
        return tuple(found)

    @cached_property
    def _measured(self) -> tuple[frozenset[str], ...]:
        return tuple(frozenset(source.names()) for source in self.beside)

    @cached_property
    def _rooms(self) -> _Rooms:
        return _Rooms(len(self.others) + 1)

    @cached_property
    def _dtypes(self) -> dict[str, tuple[torch.dtype, torch.dtype]]:
        return {}

    def stored(self, name: str) -> torch.dtype:
        """The dtype that a tensor is stored in."""
        return self._known(name)[0]

    def computed(self, name: str) -> torch.dtype:
        """The dtype that a tensor is computed in: wider than all it is made of and rounded to."""
        return self._known(name)[1]

    def _known(self, name: str) -> tuple[torch.dtype, torch.dtype]:
        if name not in self._dtypes:
            dtypes = [source.entry(name)[0] for source in (self.base, *self.others)]
            stored = self.dtype if self.dtype is not None and dtypes[0].is_floating_point else dtypes[0]
            wide = max(dtype.itemsize for dtype in (stored, *dtypes)) > 2
            self._dtypes[name] = stored, torch.float64 if wide else torch.float32
        return self._dtypes[name]

    def pieces(self, name: str) -> list[Place]:
        """The ranges that a tensor is made in: whole rows where the method asks for them, and all of it where it takes no pieces."""
        shape = self.base.entry(name)[1]
        size = math.prod(shape)
        step = (self.piece or PIECE) << self.method.short if self.method.pieces else max(1, size)
        if self.method.rows:
            row = max(1, size // shape[0] if len(shape) > 1 and shape[0] else size)
            step = max(1, step // row) * row
        return [(name, start, min(size, start + step)) for start in range(0, size, step)] or [(name, 0, 0)]

    def read(self, place: Place, *, base: bool = True, stride: int = 1, look: bool = True) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The base's entries and the models', as they are computed with; the base's place is taken by the first model's where it is not read.

        They stay until the same thread reads again. Raises ``ModelError`` naming the model and the tensor that holds NaN or Inf, unless nobody
        is to ``look``.
        """
        return self.widened(place, self.raw(place, base=base), stride=stride, look=look)

    def raw(self, place: Place, *, base: bool = True) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The same as they are stored, laid flat."""
        name, start, stop = place
        sources = (*self.others, self.base) if base else self.others
        values = [source.read_into(room, name, start, stop) for room, source in zip(self._rooms.mine, sources)]
        return (values.pop(), values) if base else (values[0], values)

    def widened(
        self, place: Place, raw: tuple[torch.Tensor, list[torch.Tensor]], *, stride: int = 1, look: bool = True
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """What was read as it is computed with. Raises as ``read`` does."""
        name = place[0]
        dtype = self.computed(name)
        first, others = raw
        base = not others or first is not others[0]
        values = []
        for room, source, found in zip(self._rooms.mine, (*self.others, self.base), (*others, first) if base else others):
            few = found[::stride] if stride > 1 else found
            wide = few if few.dtype == dtype else room.of(dtype, len(few))[0].copy_(few)
            if look and not finite(wide):
                raise ModelError(f"{source.whose(name)}: {quoted(name)} must be finite, holds NaN or Inf. Merge models that are whole.")
            values.append(wide if self.method.pieces else wide.reshape(self.base.entry(name)[1]))
        return (values.pop(), values) if base else (values[0], values)

    def at(self, place: Place, known: Any) -> At:
        """What the method is told of a piece."""
        name, start, _ = place
        beside = tuple(self._statistics(source, there, place) for source, there in zip(self.beside, self._measured))
        shape = self.base.entry(name)[1]
        return At(name, shape, self.weights(name), self._models, start, self.seed, known, beside, self._depths[name])

    def _statistics(self, source: Source, there: frozenset[str], place: Place) -> Mapping[str, torch.Tensor]:
        name, start, stop = place
        found = {}
        for kind in self.method.statistics:
            key = f"{name}/{kind}"
            if key in there:
                shape = source.entry(key)[1]
                pieces = self.method.pieces
                found[kind] = source.read(key, start, stop) if pieces else source.read(key, 0, math.prod(shape)).reshape(shape)
        return found


class _Rooms(threading.local):
    """Each thread's memory for a piece of every model."""

    def __init__(self, models: int):
        self.mine = [Room() for _ in range(models)]


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


def require_memory(job: Job, free: int, held: int) -> Job:
    """The same with no longer pieces and no more threads than is free. Raises ``SettingError`` where that holds not even one short piece.

    ``held`` are the bytes that the process has already, which ``--ram`` counts too.
    """
    need = _need(job)
    while need > free and job.method.pieces and (job.piece or PIECE) > _LEAST:
        job = replace(job, piece=(job.piece or PIECE) // 2)
        need = _need(job)
    if need > free:
        raise SettingError(
            f"--ram: {job.method} needs {need / 1e6:.0f} MB for its largest tensor beside the {held / 1e6:.0f} MB that are held, and "
            f"{free / 1e6:.0f} MB are free. Give {math.ceil((held * _AGAIN + need) / 1e6)} MB or more, or another method."
        )
    return replace(job, threads=min(job.threads, max(1, (free - _FIXED) // (need - _FIXED))))


def _need(job: Job) -> int:
    """Bytes of one thread's largest piece, of what is made of it on the way, and of what is there once."""
    largest = max(
        ((stop - start) * job.computed(name).itemsize for name in job.names for _, start, stop in job.pieces(name)[:1]), default=1
    )
    return _FIXED + max(1, largest) * (_ARRAYS if job.method.pieces else _WHOLE) * (len(job.others) + 2)
