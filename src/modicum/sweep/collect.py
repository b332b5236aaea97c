"""Statistics of a unit's inputs, collected once for the union of what methods need."""

from __future__ import annotations

import math
from collections.abc import Set

import torch
import torch.nn.functional as F
from torch import nn

from modicum.core.method import Need
from modicum.core.unit import Stats, Unit
from modicum.data.splits import Batch
from modicum.numerics.gram import add_gram, mirror
from modicum.sweep.cover import Cover
from modicum.sweep.ranks import LONE, Ranks
from modicum.sweep.spill import SpillPool

# Values turned to float32 at a time: enough rows for products at full speed, and a bound on memory.
_CHUNK = 1 << 23
_MOMENTS = {Need.NORMS, Need.MEANS, Need.VARIANCES}


class Collector:
    """Accumulates the statistics of inputs given as rows (tokens, columns); a covariance the ``pool`` has no room for lies in a file."""

    def __init__(self, needs: Set[Need], columns: int, device: torch.device | str = "cpu", pool: SpillPool | None = None):
        self._stats = Stats()
        if needs & _MOMENTS or Need.COVARIANCE in needs:
            self._stats.total = torch.zeros(columns, device=device)
            self._stats.square = torch.zeros(columns, device=device)
        if Need.COVARIANCE in needs:
            self._stats.covariance = torch.zeros(columns, columns, device=device)
            if pool is not None:
                pool.admit(self._stats.covariance)
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
        count = max(1, _CHUNK // rows.shape[1])
        buffer = torch.empty(min(count, len(rows)), rows.shape[1], device=rows.device)
        for chunk in rows.split(count):
            value = buffer[: len(chunk)].copy_(chunk)
            stats.total += value.sum(0)
            if stats.covariance is not None:
                add_gram(stats.covariance, value)
            else:
                stats.square += value.square_().sum(0)

    def stats(self, ranks: Ranks = LONE, who: str = "") -> Stats:
        """What was collected, over all ranks, of the unit ``who``, in the computer's own memory; nothing can be added afterwards."""
        for part in ("total", "square", "covariance"):
            if (value := getattr(self._stats, part)) is not None:
                setattr(self._stats, part, value.cpu())
        summed(self._stats, ranks, who)
        if self._stats.covariance is not None:
            self._stats.square = mirror(self._stats.covariance).diagonal().clone()
        return self._stats


def summed(stats: Stats, ranks: Ranks, who: str) -> Stats:
    """Statistics of the unit ``who`` summed over all ranks, in place."""
    count = torch.tensor(stats.count)
    parts = (stats.total, stats.square, stats.covariance, stats.frequency)
    ranks.sum(who, count, *(part for part in parts if part is not None))
    stats.count = int(count)
    return stats


def input_rows(unit: Unit, module: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """A module's input as rows (tokens or patches, columns of the unit's matrix view)."""
    if unit.kind == "convolution":
        return _patches(module, inputs)
    return inputs.reshape(-1, inputs.shape[-1])


def has_rows(unit: Unit, module: nn.Module) -> bool:
    """Whether inputs can be written as rows of the unit's columns."""
    return unit.kind != "embedding" and unit.groups == 1


def _patches(module: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Rows (places, channels · kernel) of a convolution's input, padded as the module pads it."""
    kernel, stride, dilation = (tuple(getattr(module, name)) for name in ("kernel_size", "stride", "dilation"))
    if inputs.ndim == len(kernel) + 1:
        inputs = inputs.unsqueeze(0)  # one image, without an axis for the batch
    mode, pads = str(module.padding_mode), list(module._reversed_padding_repeated_twice)  # type: ignore[arg-type]
    windows = F.pad(inputs, pads, mode="constant" if mode == "zeros" else mode)
    for axis, (width, step, apart) in enumerate(zip(kernel, stride, dilation), start=2):
        windows = windows.unfold(axis, apart * (width - 1) + 1, step)[..., ::apart]
    places = range(2, 2 + len(kernel))
    order = (0, *places, 1, *range(2 + len(kernel), 2 + 2 * len(kernel)))
    return windows.permute(order).reshape(-1, inputs.shape[1] * math.prod(kernel))


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
