"""Top-k fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from modicum.adapt._family import SparseAdapter, counted, weight_of
from modicum.core.parametrization import Start, State
from modicum.core.settings import param


@dataclass(frozen=True, kw_only=True)
class Topk(SparseAdapter):
    """The largest entries of a weight are trained, and no others: what methods that choose entries by more are held against.

    ``W + S`` with S at the places of the largest magnitudes.

    *Shapes:* entries (count,), count = keep · rows · columns.

    *Needs and cost:* no statistics; count trained numbers, and as many places in a file.

    *Reduces to:* full fine-tuning with ``keep=1``.

    *Raises:* ``SettingError`` where there is no weight to begin from.

    *Differences from the paper:* there is none.

    Example:
        >>> str(Topk(keep=0.05))
        'topk keep=0.05'

    """

    rate: ClassVar[float] = 3e-2

    keep: float = param(0.01, "share of entries that are trained, the largest ones", between=(1e-9, 1.0), dial=True)

    @override
    def begin(self, start: Start) -> State:
        """Zeros at the largest entries."""
        order = weight_of(start).reshape(-1).abs().argsort(descending=True, stable=True)
        places = order[: counted(self.keep, start)].sort().values
        return State({"entries": torch.zeros(len(places))}, {"places": places}, base=start.base)
