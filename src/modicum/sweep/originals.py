"""The original beside the compressed model in one sweep: every micro-batch runs twice, and what a unit meets in both stands side by side."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from modicum.core.method import Need
from modicum.core.unit import Unit
from modicum.sweep.collect import Collector, has_rows
from modicum.sweep.script import Script
from modicum.sweep.suspend import Arrival

if TYPE_CHECKING:
    from modicum.sweep.engine import Sweep

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


class Ahead:
    """Lets micro-batches of the original go on in a block as soon as what they meet at a unit is summed beside what the compressed model meets.

    So the inputs that a unit of the original has are there for one micro-batch at a time, and it stands where less is kept: a stage further.
    """

    def __init__(self, sweep: Sweep):
        self._sweep = sweep
        self._summed: dict[tuple[str, ...], tuple[Collector, set[int]]] = {}  # of stages that not all have come to, and who is in it

    def arrived(self, index: int, arrival: Arrival) -> int | None:
        """Keep within memory what ``index`` waits with; the original's micro-batch that need not wait any longer now, None where all must."""
        sweep, stop = self._sweep, arrival.stop
        if stop.kind == "unit":
            sweep.pool.admit(arrival.tensor)
        unit = sweep.units.get(stop.name) if stop.kind == "unit" else None
        if unit is None or not sweep.originals.beside or not sweep.script.block_of.get(unit.name) or unit.name in sweep.done:
            return None
        own = index if sweep.originals.compressed(index) else index - sweep.originals.treated
        other = own + sweep.originals.treated
        stage, alone = sweep.script.stage_of(unit.name), not self._paired(unit) or sweep.script.block_of[unit.name] in sweep.dropped
        if alone or own in self._summed.get(stage, (None, ()))[1]:
            return other if other == index else None
        met = [sweep.chain.waiting.get(each) for each in (own, other)]
        if any(each is None or each.stop != stop or each.tensor is None for each in met):
            return None
        ours, theirs = (each.tensor for each in met if each is not None)
        assert ours is not None and theirs is not None
        collector, those = self._summed.setdefault(stage, (sweep.collector(unit, stop.name, ours), set()))
        sweep.collect(collector, unit, stop.name, own, "", ours, theirs)
        those.add(own)
        return other

    def _paired(self, unit: Unit) -> bool:
        """Whether what a unit meets in both models is to be summed."""
        script, measured = self._sweep.script, self._sweep.measured
        if measured is not None and measured.isdisjoint(script.stage_of(unit.name)):
            return False
        wanted = Need.DRIFT in self._sweep.needs & script.asked(unit.name, self._sweep.asked, self._sweep.needs)
        return wanted and not script.data_free(unit) and has_rows(unit, self._sweep.chain.owner(unit.module))

    def begun(self, unit: Unit) -> tuple[Collector | None, Collection[int]]:
        """What was summed of a stage so far, and of which micro-batches; it is let go here."""
        return self._summed.pop(self._sweep.script.stage_of(unit.name), (None, ()))


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
