"""The original beside the compressed model in one sweep: every micro-batch runs twice, and what a unit meets in both stands side by side."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TypeVar

from modicum.sweep.script import Script

T = TypeVar("T")


@dataclass(frozen=True)
class Originals:
    """Which micro-batches of a sweep go through the compressed model: the first ``treated``; as many after them, if any, through the original."""

    treated: int
    beside: bool = False

    @property
    def count(self) -> int:
        """All micro-batches of the sweep."""
        return self.treated * (2 if self.beside else 1)

    def compressed(self, index: int) -> bool:
        """Whether a micro-batch goes through the compressed model."""
        return index < self.treated

    def apart(self, values: Collection[tuple[int, T]]) -> tuple[list[tuple[int, T]], dict[int, T]]:
        """Values of the compressed model's micro-batches, and those of the original's by the index that they have there."""
        originals = {index - self.treated: value for index, value in values if not self.compressed(index)}
        return [(index, value) for index, value in values if self.compressed(index)], originals


def hindered(script: Script, treated: Iterable[str]) -> str:
    """Why the original cannot run beside the compressed model, or an empty string; ``treated`` are weights that have been treated before."""
    if script.in_turn:
        return "forwards share state"
    if script.inside or script.uncalled.intersection(treated):
        return "a weight that its module uses in its own way has one value for both"
    return ""


def told(who: str, why: str) -> str:
    """The event of weights of which it is not known what the original meets."""
    return f"{who} made to give what it gives on its own inputs, not what the original gave, since {why}"
