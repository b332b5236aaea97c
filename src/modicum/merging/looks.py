"""What the first entries of each piece tell of a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

_SHARE = 64  # of so many entries one is looked at
_EACH = 8  # in every piece of so many


class Looks:
    """Sizes of the base and of the change, and how often all models move alike, from one entry in 64."""

    def __init__(self, models: int) -> None:
        self._seen: tuple[list[torch.Tensor], ...] = tuple([] for _ in range(models + 2))

    @staticmethod
    def few(number: int, entries: int) -> int:
        """How many of a piece's entries are looked at: many of one piece in eight, since each look costs a read."""
        return 0 if number % _EACH else min(entries, max(1, entries * _EACH // _SHARE))

    def add(self, base: torch.Tensor, others: Sequence[torch.Tensor], made: torch.Tensor, few: int) -> None:
        """Keep the first entries of one piece."""
        for seen, values in zip(self._seen, (base, made, *others)):
            seen.append(values.reshape(-1)[:few].to(torch.float32, copy=True))

    def told(self) -> dict[str, Any]:
        """Norms of the entries looked at, of the change, and the share of entries that all move on which signs agree."""
        base, made, *others = (torch.cat(seen) for seen in self._seen)
        sums = torch.zeros_like(base)
        moved = torch.ones_like(base)
        for other in others:
            sign = torch.sign(other - base)
            sums += sign
            moved *= sign.abs()
        all_moved = float(moved.sum(dtype=torch.float64))
        alike = float((sums.abs() == len(others)).sum())
        return {
            "looked_at": len(base), "norm": _norm(base), "change": _norm(made - base),
            "agreement": alike / all_moved if all_moved else None,
        }  # fmt: skip


def _norm(values: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(values, dtype=torch.float64))
