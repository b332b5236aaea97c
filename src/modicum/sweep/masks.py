"""To which tokens a mask belongs: learnt by marking one of them and seeing whose influence vanishes, never by equal shapes.

A mask that a model obeys makes what stands in a marked place felt nowhere else. So one token of one input is changed twice, as the mask stands and
with the token's entry flipped: where the change goes beyond its own token in one of the two and not in the other, the latter marks padding,
and every tensor that changed at that token alone has its tokens under this mask. An encoder's and a decoder's mask of one length, padding on
either side, additive masks, and masks whose True means padding are told apart so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

import torch

from modicum.data.splits import Batch, count_rows
from modicum.sweep.cover import Cover, entry, flags, flipped, marks, parts_tokens

Seen = dict[str, torch.Tensor]
"""What a forward showed: by name, a signature of each token of a tensor."""

Run = Callable[[Batch], Seen]


@dataclass
class Learnt:
    """Masks by the names of tensors whose tokens they cover; ``ignored`` are masks that the model pays no heed, ``unclear`` those of pairs of tokens
    of which nothing could be told.
    """

    covers: dict[str, Cover] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)


def learn(run: Run, batches: Iterable[Batch]) -> Learnt:
    """Find the masks of batches and what each covers, by a few forwards of two rows where there is padding, by none where there is not."""
    found, clash, batches = Learnt(), set(), list(batches)
    padded = _padded(batches)
    for batch in batches:
        unread = [key for key, value in _entries(batch) if key not in padded and parts_tokens(value)]
        found.unclear += [str(key) for key in unread if str(key) not in found.unclear]
    for key, batch in padded.items():
        covers = _tried(run, batch, key)
        if covers is None:
            continue
        if not covers and flags(entry(batch, key)) is not None:  # type: ignore[arg-type]  # else it may be no mask
            found.ignored.append(str(key))
        elif not covers and parts_tokens(entry(batch, key)):  # type: ignore[arg-type]
            found.unclear.append(str(key))
        for name, cover in covers.items():
            clash |= {name} if name in found.covers else set()
            found.covers[name] = cover
    found.covers = {name: cover for name, cover in found.covers.items() if name not in clash}
    return found


def signature(value: torch.Tensor, *, whole: bool = False) -> torch.Tensor:
    """One number for each token of a tensor (its last axis folded away, unless it holds indices or is ``whole``): equal where tokens are."""
    value = torch.view_as_real(value.detach()) if value.is_complex() else value.detach()
    if whole or value.ndim < 2 or not value.is_floating_point():
        return value.cpu()
    chance = torch.rand(value.shape[-1], generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(value.device)
    return (torch.nan_to_num(value.double()) @ (0.5 + chance)).cpu()


def _entries(batch: Batch) -> list[tuple[Any, torch.Tensor]]:
    return list(batch.items()) if isinstance(batch, Mapping) else list(enumerate(batch))


def _padded(batches: Iterable[Batch]) -> dict[Any, Batch]:
    """By mask the first batch of several rows, else the first of all, that has both kinds of entries in one row."""
    found: dict[Any, Batch] = {}
    for batch in batches:
        for key, value in _entries(batch):
            wide = value.ndim > 0 and len(value) > 1
            if (key not in found or (wide and len(entry(found[key], key)) < 2)) and _mixed(batch, key) is not None:  # type: ignore[arg-type]
                found[key] = batch
    return found


def _mixed(batch: Batch, key: Any) -> int | None:
    """The row of a mask with the fewest marks beside others, or None."""
    held = marks(batch, key)
    if held is None or held.shape[1] < 2:
        return None
    rare = torch.minimum(held.sum(1), (~held).sum(1))
    return int(rare.argmax()) if int(rare.max()) else None


def _tried(run: Run, batch: Batch, key: Any) -> dict[str, Cover] | None:
    """What a mask covers; nothing where it is ignored, None where no token could be changed."""
    tried = False
    for few, row in _shortest(batch, key):
        try:
            run(few)
        except Exception:  # a model that cannot run on a part of the rows
            continue
        for stream, place in ((stream, place) for place in _places(marks(few, key)[row]) for stream in _streams(few, key)):  # type: ignore[index]
            trial = _Trial(run, few, key, stream, (row, place))
            if not trial.possible:
                continue
            tried = True
            if covers := trial.covers():
                return covers
        break
    return {} if tried else None


def _shortest(batch: Batch, key: Any) -> Iterator[tuple[Batch, int]]:
    """Two rows of the batch where all its tensors have as many, then the whole; and the row to try."""
    row, rows = _mixed(batch, key), count_rows(batch)
    assert row is not None
    if rows > 2 and all(value.ndim and len(value) == rows for _, value in _entries(batch)):
        other = next(each for each in range(rows) if each != row)
        yield _changed(batch, lambda _, value: value[[other, row]]), 1
    yield batch, row


def _changed(batch: Batch, change: Callable[[Any, torch.Tensor], torch.Tensor]) -> Batch:
    if isinstance(batch, Mapping):
        return {key: change(key, value) for key, value in batch.items()}
    return tuple(change(key, value) for key, value in enumerate(batch))


def _places(marks: torch.Tensor) -> list[int]:
    """Tokens to try: of both kinds the middle, the last and the first, the more frequent kind's first."""
    kinds = sorted((marks.nonzero()[:, 0].tolist(), (~marks).nonzero()[:, 0].tolist()), key=lambda found: -len(found))
    return list(dict.fromkeys(place for found in kinds for place in (found[len(found) // 2], found[-1], found[0])))


def _streams(batch: Batch, key: Any) -> list[tuple[Any, tuple[int, int]]]:
    """Tensors that have the mask's two axes, and where; those with fractions first, then indices, other masks not."""
    rows, tokens = marks(batch, key).shape  # type: ignore[union-attr]
    found = []
    for other, value in _entries(batch):
        axes = [(0, axis) for axis in range(1, value.ndim) if value.shape[axis] == tokens and value.shape[0] == rows]
        axes += [(1, 0)] if value.ndim > 1 and value.shape[:2] == (tokens, rows) and rows != tokens else []
        if other != key and axes and (value.ndim > 2 or flags(value) is None):
            found.append((not value.is_floating_point(), (other, axes[0])))
    return [stream for _, stream in sorted(found, key=lambda pair: pair[0])]


@dataclass
class _Trial:
    """One token of one stream changed, as its mask stands and with its entry flipped."""

    run: Run
    batch: Batch
    key: Any
    stream: tuple[Any, tuple[int, int]]
    place: tuple[int, int]

    @property
    def possible(self) -> bool:
        return self._other() is not None and flipped(self.batch, self.key, self.place) is not None

    def covers(self) -> dict[str, Cover]:
        """What changed at the token alone, once it is marked as padding; nothing unless the mark made the difference."""
        try:
            as_it_is, flipped = self._felt(self.batch), self._felt(self._flipped())
        except Exception:  # a mask with holes, which not every model takes
            return {}
        if (None in as_it_is.values()) == (None in flipped.values()):
            return {}
        marked = bool(marks(self.batch, self.key)[self.place])  # type: ignore[index]
        silent, zero = (flipped, marked) if None in as_it_is.values() else (as_it_is, not marked)
        return {name: Cover(self.key, zero, *laid) for name, laid in silent.items() if laid is not None}

    def _felt(self, batch: Batch) -> dict[str, tuple[tuple[int, ...], bool] | None]:
        """Tensors that feel the token: how its tokens lie in them where that token alone changed, None where more did."""
        before, after = self.run(batch), self.run(self._stirred(batch))
        shape = tuple(marks(self.batch, self.key).shape)  # type: ignore[union-attr]
        found: dict[str, tuple[tuple[int, ...], bool] | None] = {}
        for name, value in before.items():
            if name not in after or value.shape != after[name].shape:
                found[name] = None
            elif bool((differs := value != after[name]).any()):
                found[name] = _located(differs, shape, self.place)
        return found

    def _flipped(self) -> Batch:
        made = flipped(self.batch, self.key, self.place)
        assert made is not None
        return _changed(self.batch, lambda key, value: made if key == self.key else value)

    def _stirred(self, batch: Batch) -> Batch:
        name, axes = self.stream
        other = self._other()

        def stir(key: Any, value: torch.Tensor) -> torch.Tensor:
            if key != name:
                return value
            made = value.clone()
            _token(made, axes, self.place).copy_(_token(value, axes, (self.place[0], other)))  # type: ignore[arg-type]
            return made

        return _changed(batch, stir)

    def _other(self) -> int | None:
        """The nearest token of the same row that holds something else: what stands there is valid here."""
        name, axes = self.stream
        value = entry(self.batch, name)
        assert value is not None
        here = _token(value, axes, self.place)
        near = sorted(range(value.shape[axes[1]]), key=lambda other: abs(other - self.place[1]))
        return next((other for other in near if not torch.equal(_token(value, axes, (self.place[0], other)), here)), None)


def _token(value: torch.Tensor, axes: tuple[int, int], place: tuple[int, int]) -> torch.Tensor:
    index: list[Any] = [slice(None)] * value.ndim
    for axis, number in zip(axes, place):
        index[axis] = number
    return value[tuple(index)]


def _located(differs: torch.Tensor, shape: Sequence[int], place: tuple[int, int]) -> tuple[tuple[int, ...], bool] | None:
    """The axes along which only ``place`` of a mask of ``shape`` differs, and whether they are one, column by column; None where more differs."""
    where = differs.nonzero()
    alone = lambda axis, number: bool((where[:, axis] == number).all())
    for axes in permutations(range(differs.ndim), 2):
        if all(differs.shape[axis] == length and alone(axis, number) for axis, length, number in zip(axes, shape, place)):
            return axes, False
    for axis, across in ((axis, across) for axis in range(differs.ndim) for across in (False, True)):
        number = place[1] * shape[0] + place[0] if across else place[0] * shape[1] + place[1]
        if differs.shape[axis] == shape[0] * shape[1] and alone(axis, number):
            return (axis,), across
    return None
