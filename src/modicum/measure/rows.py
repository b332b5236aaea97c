"""Rows of a large table that tell what an option costs all of them: every entry that was looked up, and some of the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from modicum.core.unit import Stats, Unit
from modicum.sweep import Sensitivity
from modicum.table.harm import looked_up_alone

# Entries not looked up that are measured; a table is sampled where that leaves out at least so many times as many.
_OTHERS, _WORTH = 2048, 2
# Harms that are sums over rows.
_SUMS = frozenset({"fisher", "covariance"})


@dataclass(frozen=True)
class Sample:
    """``rows`` (a long tensor) of a table, how many rows each stands for (rows, 1), and what a harm of theirs is to be multiplied by.

    Of entries that were looked up each stands for itself. The others count alike and little, each as if met once, and every so many-th of them
    stands for its neighbours. An error times the root of ``counts`` has the squares of all rows' errors in the mean.
    """

    rows: torch.Tensor
    counts: torch.Tensor
    share: float

    @classmethod
    def of(cls, unit: Unit, stats: Stats, sensitivity: Sensitivity | None, harm: str) -> Sample | None:
        """A sample of a table that is only looked up in; None where it is small, or its harm is no sum over rows."""
        if not looked_up_alone(unit) or harm not in _SUMS or (sensitivity is not None and sensitivity.weight is not None):
            return None
        entries = unit.shape[0]
        frequency = torch.zeros(entries) if stats.frequency is None else stats.frequency
        met, others = (frequency > 0).nonzero()[:, 0], (frequency <= 0).nonzero()[:, 0]
        step = len(others) // _OTHERS
        if step < 2 or (1 + _WORTH) * (len(met) + len(others) // step) > entries:
            return None
        some = others[step // 2 :: step]
        rows, order = torch.cat([met, some]).sort()
        counts = torch.cat([torch.ones(len(met)), torch.full((len(some),), len(others) / len(some))])[order]
        # An entry's share of all look-ups has the number of entries in it.
        total = float(frequency.sum())
        return cls(rows, counts[:, None], (total + len(rows)) / (total + entries))

    def event(self, entries: int) -> str:
        """What a reader must know of a table that is told by some of its ``entries``."""
        met, step = int((self.counts == 1).sum()), round(float(self.counts.max()))
        return (
            f"{len(self.rows)} of its {entries} rows tell what options cost it: {met} that the data look up, and every {step}th of the others. "
            "--harm error measures all."
        )

    def stats(self, stats: Stats) -> Stats:
        """Statistics of these rows alone."""
        frequency = None if stats.frequency is None else stats.frequency[self.rows]
        reference = None if stats.reference is None else stats.reference[self.rows]
        return Stats(
            count=stats.count, frequency=frequency, reference=reference, felt=stats.felt, site_seed=stats.site_seed, events=stats.events
        )
