"""What the first entries of each piece tell of a tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

_FEW = 1 << 13  # entries that are looked at in the first piece
_EACH, _SHARE = 4, 32  # one part in so many is looked at of one piece in so many of the others, since each look costs a read


class Looks:
    """Sizes of the base and of the change, and how often all models move alike, from the first entries of one piece in four."""

    def __init__(self, models: int) -> None:
        self._seen: tuple[list[torch.Tensor], ...] = tuple([] for _ in range(models + 2))

    @staticmethod
    def few(number: int, entries: int) -> int:
        """How many of a piece's entries are looked at."""
        return 0 if number % _EACH else entries // _SHARE if number else min(entries, _FEW)

    def add(self, base: torch.Tensor, others: Sequence[torch.Tensor], made: torch.Tensor, few: int) -> None:
        """Keep the first entries of one piece."""
        for seen, values in zip(self._seen, (base, made, *others)):
            seen.append(values.reshape(-1)[:few].to(torch.float32, copy=True))

    def told(self, entries: int) -> dict[str, Any]:
        """Norms of a tensor of so many entries and of its change, and the share of entries that all move on which signs agree: estimates."""
        base, made, *others = (seen[0] if len(seen) == 1 else torch.cat(seen) for seen in self._seen)
        ups, downs = ([compare(other.numpy(), base.numpy()) for other in others] for compare in (np.greater, np.less))
        whole = math.sqrt(entries / max(1, len(base)))
        all_moved = np.count_nonzero(np.logical_and.reduce([np.logical_or(up, down) for up, down in zip(ups, downs)]))
        alike = sum(np.count_nonzero(np.logical_and.reduce(all_one_way)) for all_one_way in (ups, downs))
        return {
            "looked_at": len(base), "norm": _norm(base) * whole, "change": _norm(made.sub_(base)) * whole,
            "agreement": alike / all_moved if all_moved else None,
        }  # fmt: skip


def _norm(values: torch.Tensor) -> float:
    found = float(torch.linalg.vector_norm(values))
    return found if 1e-15 < found < 1e15 else float(torch.linalg.vector_norm(values, dtype=torch.float64))
