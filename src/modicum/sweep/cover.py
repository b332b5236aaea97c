"""Which tokens of a tensor a mask of the batch covers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from modicum.data.splits import Batch

# Beyond this an additive mask leaves nothing of a score.
_NOTHING = -100.0


@dataclass(frozen=True)
class Cover:
    """A mask that belongs to a tensor's tokens.

    ``key`` names the mask in its batch. ``zero`` says that zeros mark padding, otherwise what is not zero does (True, or the lowest number of an
    additive mask). ``axes`` are those of the tensor that run along the mask's two; one where they lie one behind the other, which ``across``
    says column by column.
    """

    key: Any
    zero: bool
    axes: tuple[int, ...]
    across: bool = False

    def real(self, batch: Batch, shape: Sequence[int]) -> torch.Tensor | None:
        """Which tokens of a tensor of ``shape`` are no padding: bool, of as many axes, to be broadcast; None where all are."""
        mask = entry(batch, self.key)
        pairs = None if mask is None else flags(mask)
        if pairs is None:
            return None
        real = pairs if self.zero else ~pairs
        return None if bool(real.all()) else self._laid(real, shape)

    def _laid(self, real: torch.Tensor, shape: Sequence[int]) -> torch.Tensor | None:
        if len(self.axes) == 1:
            real = (real.T if self.across else real).reshape(-1)
        elif self.axes[0] > self.axes[1]:
            real = real.T
        axes = sorted(self.axes)
        if axes[-1] >= len(shape) or [shape[axis] for axis in axes] != list(real.shape):
            return None
        return real.reshape([length if axis in axes else 1 for axis, length in enumerate(shape)])


def entry(batch: Batch, key: Any) -> torch.Tensor | None:
    """A tensor of a batch by name or place, or None."""
    if isinstance(batch, Mapping):
        return batch.get(key)
    return batch[key] if isinstance(key, int) and key < len(batch) else None


def flags(value: torch.Tensor) -> torch.Tensor | None:
    """A mask as a matrix of what is not zero; None for a tensor that is no mask: more values than two, or axes than two."""
    if value.ndim < 2 or value.numel() == 0 or value[0].numel() != value.shape[-1]:
        return None
    pairs = value.reshape(len(value), -1)
    marks = pairs != 0
    others = pairs[marks]
    if others.numel() and not (bool((others == 1).all()) or _additive(others)):
        return None
    return marks


def _additive(values: torch.Tensor) -> bool:
    return values.is_floating_point() and bool((values <= _NOTHING).all())
