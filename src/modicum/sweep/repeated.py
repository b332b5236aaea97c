"""Inputs of cells and attentions that a forward calls several times, summed over all calls: what a later call meets its own weights made, so the
original is run to its end before the sweep.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from modicum.core.errors import ModelError
from modicum.core.unit import Stats
from modicum.sweep.collect import Collector, summed
from modicum.sweep.suspend import Arrival, Chain, Stop
from modicum.sweep.within import MIXED, Met, mixed, products

if TYPE_CHECKING:
    from modicum.models.model import Model
    from modicum.sweep.engine import Sweep

_ALL_CALLS = "its module is called several times: its inputs are those of all calls, in the original"


class Loading:
    """Answers at a block's ends: its weights are in memory while a forward is inside."""

    def __init__(self, model: Model):
        self.model = model
        self.inside: dict[str, int] = {}

    def at(self, stop: Stop, arrivals: list[tuple[int, Arrival]]) -> Iterator[tuple[int, Any]]:
        """Resume forwards at an end of a block."""
        if stop.kind == "enter":
            self.model.weights.load(self.model.blocks[stop.name].parameters)
            self.inside[stop.name] = self.inside.get(stop.name, 0) + len(arrivals)
        else:
            self.inside[stop.name] -= len(arrivals)
            if not self.inside[stop.name]:
                del self.inside[stop.name]
                self.model.weights.release(self.model.blocks[stop.name].parameters)
        yield from ((index, None if stop.kind == "enter" else arrival.output) for index, arrival in arrivals)

    def end(self) -> None:
        """Let go of what forwards that were left half way had loaded."""
        self.model.weights.release([name for block in self.inside for name in self.model.blocks[block].parameters])


class Repeated:
    """One pass of all micro-batches for a sweep; ``run`` gives statistics by stage."""

    def __init__(self, sweep: Sweep):
        self.sweep, self.model, self.script = sweep, sweep.model, sweep.script
        self.loading = Loading(self.model)
        self.collectors: dict[tuple[str, ...], Collector | None] = {}
        self.counts: dict[tuple[str, ...], int] = {}
        self.mixed: set[tuple[str, ...]] = set()

    def run(self) -> dict[tuple[str, ...], Stats]:
        """Drive it."""
        names, batches = sorted(self.script.repeated), self.sweep.batches
        seeds = self.script.seeds(batches)
        self.chain = Chain(
            self.model.module, batches, names, self.model.blocks, self.script.carried, seeds=seeds, in_turn=self.script.in_turn
        )
        self.model.weights.load(self.model.trunk)
        try:
            for _ in self.chain.run(self._work, lambda stop: stop.kind == "unit"):
                pass
        finally:
            self.loading.end()
            self.model.weights.release(self.model.trunk)
        return {stage: self._stats(stage) for name in names for stage in self.script.inside[name]}

    def _work(self, stop: Stop, arrivals: list[tuple[int, Arrival]], complete: bool) -> Iterator[tuple[int, Any]]:
        if stop.kind != "unit":
            yield from self.loading.at(stop, arrivals)
            return
        for index, arrival in arrivals:
            self._see(stop.name, index, arrival)
            yield index, arrival.run(self.chain.original(stop.name))

    def _see(self, name: str, index: int, arrival: Arrival) -> None:
        owner, forward = self.chain.owner(name), self.chain.original(name)
        stages = {frozenset(stage): stage for stage in self.script.inside[name]}
        known = frozenset().union(*stages)  # without what is tied
        for met in arrival.within(lambda: list(products(owner, forward, arrival.args, arrival.kwargs or {}))):
            units = known.intersection(self.model.weights.first[f"{name}.{attribute}".lstrip(".")] for attribute in met.attributes)
            if not units:
                continue
            if (stage := stages.get(units)) is None:
                raise ModelError(
                    f"{name}: must share inputs among its weights in every batch as in the first, does not. Give it batches of one kind."
                )
            self._add(stage, name, index, met)

    def _add(self, stage: tuple[str, ...], name: str, index: int, met: Met) -> None:
        sweep, members = self.sweep, [self.model.units[member] for member in stage]
        self.mixed |= {stage} if mixed(met) else set()
        for argument, value in met.inputs:
            if stage not in self.collectors:
                self.collectors[stage] = sweep.collector(members[0], name, value) if sweep.wanted(members) else None
            self.counts[stage] = self.counts.get(stage, 0) + value.numel() // value.shape[-1]
            if (collector := self.collectors[stage]) is not None:
                sweep.collect(collector, members[0], name, index, argument, value)

    def _stats(self, stage: tuple[str, ...]) -> Stats:
        unit, collector = self.model.units[stage[0]], self.collectors.get(stage)
        if collector is None:
            return summed(Stats(count=self.counts.get(stage, 0)), self.sweep.ranks, unit.name)
        stats = self.sweep.collected(collector, unit)
        stats.events += [_ALL_CALLS, *([MIXED] if stage in self.mixed and stats.moment is not None else [])]
        return stats
