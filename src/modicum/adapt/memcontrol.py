"""MemControl."""

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
class Memcontrol(Schedule):
    """Some blocks train and the others rest for good, by a mask that an outer search found to learn the task and no example by heart.

    ``full | memcontrol blocks=0110``; ``modicum.train.masks.search`` finds masks by two or more rewards at once.

    *Shapes:* one digit for each block, in the model's order; what lies outside of all rests.

    *Needs and cost:* no statistics; the search trains once for each mask that it looks at.

    *Reduces to:* training of all blocks with ones alone.

    *Raises:* ``SettingError`` for a mask of another length than the model has blocks, or without a one.

    *Differences from the paper:* the search is evolutionary, and what it is told are functions of the caller.

    Example:
        >>> sorted(Memcontrol(blocks="01").active({"table": "", "a": "h.0", "b": "h.1"}, Step(), seed=0))
        ['b']

    """

    paper: ClassVar[Paper | None] = Paper(
        title="MemControl: Mitigating Memorization in Diffusion Models via Automated Parameter Selection",
        arxiv="2405.19458",
        year=2024,
        authors="Raman Dutt and Ondrej Bohdal and Pedro Sanchez and Sotirios A. Tsaftaris and Timothy Hospedales",
    )

    blocks: str = param("", "a digit for each block: 1 trains, 0 rests; all train where it is empty")

    @override
    def active(self, units: Mapping[str, str], step: Step, seed: int) -> frozenset[str]:
        """Units of the blocks that have a one."""
        blocks = [block for block in dict.fromkeys(units.values()) if block]
        mask = self.blocks or "1" * len(blocks)
        if len(mask) != len(blocks) or set(mask) - {"0", "1"} or "1" not in mask:
            raise SettingError(f"memcontrol: blocks must be {len(blocks)} digits 0 and 1, one of them 1 at least, got {self.blocks!r}.")
        chosen = {block for block, digit in zip(blocks, mask) if digit == "1"}
        return frozenset(name for name, block in units.items() if block in chosen)
