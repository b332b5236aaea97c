"""Statistics of a unit's inputs, collected once for the union of what methods need."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Set
from itertools import zip_longest

import torch
import torch.nn.functional as F
from torch import nn

from modicum.core.blocks import Blocks, spans
from modicum.core.method import Need
from modicum.core.unit import Stats, Unit
from modicum.data.splits import Batch
from modicum.numerics.gram import add_gram, add_product, mirror
from modicum.sweep.cover import Cover
from modicum.sweep.patches import batched, met, padded, patches, places
from modicum.sweep.ranks import LONE, Ranks
from modicum.sweep.shifts import Shifts
from modicum.sweep.spill import SpillPool

# Values turned to float32 at a time: a bound on memory; more where these are fewer rows than products need for full speed, up to another bound.
_CHUNK, _FULL, _MOST = 1 << 20, 1024, 1 << 23
_MOMENTS = {Need.NORMS, Need.MEANS, Need.VARIANCES}


class Collector:
    """Accumulates the statistics of inputs given as rows (tokens, columns); a covariance the ``pool`` has no room for lies in a file.

    Of the covariance blocks of ``together`` columns, or the whole. Where patches repeat, ``shifts`` of its columns sum what they do not have in
    common, and want their images too.
    """

    def __init__(self, needs: Set[Need], columns: int, device: torch.device | str = "cpu", pool: SpillPool | None = None,
                 together: int | None = None, shifts: Callable[[slice], Shifts | None] | None = None):  # fmt: skip
        self._stats, self.drifting = Stats(), Need.DRIFT in needs
        self._shifts: list[Shifts] = []
        if needs & _MOMENTS or Need.COVARIANCE in needs:
            self._stats.total = torch.zeros(columns, device=device)
            self._stats.square = torch.zeros(columns, device=device)
        if Need.COVARIANCE in needs:
            if together is None or together >= columns:
                self._stats.covariance = torch.zeros(columns, columns, device=device)
            else:
                self._stats.blocks = Blocks.zeros(columns, together, device)
            if pool is not None:
                pool.admit(list(_squares(self._stats)))
            assert self._stats.moment is not None
            repeats = [None if shifts is None else shifts(part) for part, _ in spans(self._stats.moment)]
            self._shifts = [each for each in repeats if each is not None] if None not in repeats else []
        if self.drifting and self._stats.covariance is not None:
            self._stats.drift = torch.zeros(columns, columns, device=device)
        self._paired = 0
        if Need.INPUTS in needs:
            self._stats.inputs = []

    def add(self, rows: torch.Tensor) -> None:
        """Add inputs (tokens, columns) of any float dtype; sums are float32."""
        stats = self._stats
        stats.count += len(rows)
        if stats.inputs is not None:
            stats.inputs.append(rows.cpu())
        if stats.total is None or stats.square is None:
            return
        count, whole = _rows_at_once(rows.shape[1]), stats.moment is not None and rows.dtype == torch.float32
        buffer = torch.empty(0 if whole else min(count, len(rows)), rows.shape[1], device=rows.device)
        for chunk in rows.split(count):
            value = chunk if whole else buffer[: len(chunk)].copy_(chunk)
            stats.total += value.sum(0)
            if stats.moment is not None:
                for (part, square), shifts in zip_longest(spans(stats.moment), self._shifts):
                    add_gram(square, value[:, part]) if shifts is None else shifts.add(value[:, part])
            else:
                stats.square += value.square_().sum(0)

    @property
    def drifts(self) -> bool:
        """Whether the original's inputs are wanted beside those of the compressed model."""
        return self._stats.drift is not None

    def add_drift(self, rows: torch.Tensor, originals: torch.Tensor) -> None:
        """Add what the original model's inputs (tokens, columns) are more than those that were added."""
        assert self._stats.drift is not None
        self._paired += len(rows)
        for own, other in zip(*(value.split(_rows_at_once(rows.shape[1])) for value in (rows, originals))):
            met = own.float()
            add_product(self._stats.drift, other.float() - met if other.dtype == torch.float32 else other.float().sub_(met), met)

    def add_images(self, images: torch.Tensor) -> None:
        """What patches at the edges of a convolution's input add to the covariance, where it is summed by ``shifts``."""
        for shifts, square in zip(self._shifts, _squares(self._stats)):
            shifts.add_edges(square, images)

    def stats(self, ranks: Ranks = LONE, who: str = "") -> Stats:
        """What was collected, over all ranks, of the unit ``who``, in the computer's own memory; nothing can be added afterwards."""
        stats = self._stats
        for shifts, square in zip(self._shifts, _squares(stats)):
            shifts.complete(square)
        for part in ("total", "square", "covariance", "drift"):
            if (value := getattr(stats, part)) is not None:
                setattr(stats, part, value.cpu())
        if stats.blocks is not None:
            stats.blocks = Blocks(tuple(part.cpu() for part in stats.blocks.parts))
        summed(stats, ranks, who)
        if stats.drift is not None:
            paired = torch.tensor(self._paired)
            ranks.sum(f"{who} in both", paired)
            stats.drift = stats.drift if int(paired) == stats.count else None
        if stats.moment is not None:
            stats.square = torch.cat([mirror(square).diagonal() for square in _squares(stats)])
        return stats


def summed(stats: Stats, ranks: Ranks, who: str) -> Stats:
    """Statistics of the unit ``who`` summed over all ranks, in place."""
    count = torch.tensor(stats.count)
    parts = (stats.total, stats.square, *_squares(stats), stats.drift, stats.frequency)
    ranks.sum(who, count, *(part for part in parts if part is not None))
    stats.count = int(count)
    return stats


def _rows_at_once(columns: int) -> int:
    """How many rows of so many columns are turned to float32 at a time."""
    return max(1, min(max(_FULL, _CHUNK // columns), _MOST // columns))


def _squares(stats: Stats) -> Iterator[torch.Tensor]:
    """The covariance, or each of its blocks."""
    yield from () if stats.moment is None else (square for _, square in spans(stats.moment))


def input_rows(unit: Unit, module: nn.Module, inputs: torch.Tensor) -> Iterator[torch.Tensor]:
    """A module's input as rows (tokens or patches, columns of the unit's matrix view), so many at a time as stay small where they are made."""
    if unit.kind == "convolution":
        return patches(module, padded(module, inputs))
    if unit.kind == "transposed convolution":
        inputs = inputs.movedim(-1 - len(module.kernel_size), -1)  # type: ignore[arg-type]
    return iter((inputs.reshape(-1, inputs.shape[-1]),))


def output_rows(unit: Unit, module: nn.Module, gradient: torch.Tensor) -> Iterator[torch.Tensor]:
    """Gradients of a module's output as rows (positions of the input rows, rows of the unit's matrix view), piece by piece."""
    if unit.kind == "transposed convolution":  # every input meets a patch of the output
        sides = [side for side in reversed(module.padding) for _ in range(2)]  # type: ignore[arg-type]
        return patches(module, F.pad(batched(module, gradient), sides), met(module, gradient))
    if unit.kind == "convolution":
        gradient = gradient.movedim(-1 - len(module.kernel_size), -1)  # type: ignore[arg-type]
    return iter((gradient.reshape(-1, gradient.shape[-1]),))


def has_rows(unit: Unit, module: nn.Module) -> bool:
    """Whether inputs can be written as rows of the unit's columns."""
    return unit.kind != "embedding" and unit.groups == 1


def real_inputs(cover: Cover | None, batch: Batch, ids: torch.Tensor) -> torch.Tensor:
    """Indices that are looked up for tokens that are no padding."""
    real = None if cover is None else cover.real(batch, ids.shape)
    return ids if real is None else ids[real.expand(ids.shape).to(ids.device)]


def real_rows(cover: Cover | None, unit: Unit, batch: Batch, inputs: torch.Tensor, count: int) -> torch.Tensor | None:
    """Which of the ``count`` rows of an input are no padding, bool (count,); None where all are, or where a row is no one token's."""
    if cover is None:
        return None
    shape = tuple(inputs.shape if unit.kind == "convolution" else inputs.shape[:-1])
    real = cover.real(batch, shape)
    if real is not None and unit.kind == "convolution":
        # Of (batch, channels, places) a row for each place, where the module gives as many as it gets.
        real, shape = real[:, 0], (shape[0], *shape[2:])
    if real is None or torch.Size(shape).numel() != count:
        return None
    return real.expand(shape).reshape(-1).to(inputs.device)


def token_rows(
    cover: Cover | None, unit: Unit, module: nn.Module, batch: Batch, inputs: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """Rows of an input, piece by piece, and which of each piece are no padding: bool (rows,), None where all are."""
    pieces, real = input_rows(unit, module, inputs), None
    if cover is not None and unit.kind != "transposed convolution":
        images = padded(module, inputs) if unit.kind == "convolution" else None
        count = inputs.numel() // inputs.shape[-1] if images is None else len(images) * math.prod(places(module, images))
        real = real_rows(cover, unit, batch, inputs, count)
    low = 0
    for rows in pieces:
        yield rows, None if real is None else real[low : low + len(rows)]
        low += len(rows)
