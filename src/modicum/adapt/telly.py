"""Telly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from modicum.core.errors import SettingError
from modicum.core.method import Paper
from modicum.core.parametrization import Step
from modicum.core.schedule import Schedule
from modicum.core.settings import param


@dataclass(frozen=True, kw_only=True)
class Telly(Schedule):
    """The first blocks and what lies before them rest for good; the others train.

    ``full | telly frozen=8``: what a model knows of the surface of its inputs lies in its first blocks, and fine-tuning hardly moves them.

    *Shapes:* whatever trains.

    *Needs and cost:* no statistics; no gradient is computed below the first block that trains.

    *Reduces to:* training without it with ``frozen=0``.

    *Raises:* ``SettingError`` where no block is left to train.

    *Differences from the paper:* any method may stand before it, not full fine-tuning alone.

    Example:
        >>> sorted(Telly(frozen=1).active({"table": "", "a": "h.0", "b": "h.1", "head": ""}, Step(), seed=0))
        ['b', 'head']

    """

    paper: ClassVar[Paper | None] = Paper(
        title="Towards Efficient Fine-tuning of Pre-trained Code Models: An Experimental Study and Beyond",
        arxiv="2304.05216",
        year=2023,
        authors="Ensheng Shi and Yanlin Wang and Hongyu Zhang and Lun Du and Shi Han and Dongmei Zhang and Hongbin Sun",
    )

    frozen: int = param(1, "blocks that rest, counted from the inputs", between=(0, 10**6), dial=True)

    @override
    def active(self, units: Mapping[str, str], step: Step, seed: int) -> frozenset[str]:
        """All behind the last unit of the first blocks."""
        resting = [block for block in dict.fromkeys(units.values()) if block][: self.frozen]
        names = list(units)
        last = max((at for at, name in enumerate(names) if units[name] in resting), default=-1)
        if units and last + 1 == len(names):
            raise SettingError(f"{self.key()}: frozen must leave a block that trains, is {self.frozen} of {len(resting)}.")
        return frozenset(names[last + 1 :])
