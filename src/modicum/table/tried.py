"""What a plain option really loses, once it was judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from modicum.numerics.interval import interval


@dataclass
class Tried:
    """A plain option that was judged: bytes of its files, mean divergence with its 95 % interval, and the divergence of each sequence."""

    bytes: int
    mean: float
    low: float
    high: float
    rows: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, size: int, rows: Sequence[float], seed: int) -> Tried:
        """From what each sequence lost."""
        return cls(size, *interval(rows, seed), [float(value) for value in rows])
