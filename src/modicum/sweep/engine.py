"""The sweep: every stage of a model in call order, with the inputs it really gets, and the outputs its treated weights really produce."""

from __future__ import annotations

from collections import ChainMap, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import Any

import torch
from torch import nn

from modicum.core.errors import ModelError, SettingError
from modicum.core.finite import finite
from modicum.core.method import Need
from modicum.core.unit import Stats, Unit
from modicum.data.splits import Batch
from modicum.forms import Form
from modicum.models.model import Model
from modicum.sweep.collect import Collector, has_rows, real_inputs, summed, token_rows
from modicum.sweep.originals import Ahead, Originals, hindered, told
from modicum.sweep.ranks import LONE, Ranks
from modicum.sweep.rehearsal import module_units, stop_names
from modicum.sweep.repeated import Repeated
from modicum.sweep.script import Script
from modicum.sweep.shifts import Shifts
from modicum.sweep.spill import SpillPool
from modicum.sweep.stacks import Stacks
from modicum.sweep.stage import Chronicle, Stage, looked_up, placed_on, seed_of
from modicum.sweep.suspend import Answer, Arrival, Chain, Stop
from modicum.sweep.within import MIXED, Met, mixed, products

Treat = Callable[[Stage], Mapping[str, Form] | None]


class Sweep:
    """One pass over all blocks for all micro-batches.

    ``treat(stage)`` may return forms by unit name; from there on the chain runs on their dense values. ``needs`` is the union of what to
    collect, of all units or of those in ``measured``, of each what is ``asked`` for it where that is told. ``replayed`` gives stored outputs for
    blocks that are done already, ``on_block(name, outputs)`` is called when a block is done. ``run`` yields (index, output) as batches finish. Of
    several ``ranks`` each runs its share of the batches; what ``treat`` is shown is summed over all, and it must give all the same forms.
    ``alongside``: the original runs each micro-batch too where ``needs`` ask for drift, under indices after the others' (``sweep/originals.py``).
    """

    def __init__(
        self, model: Model, batches: Sequence[Batch], script: Script, treat: Treat | None = None, *, needs: Set[Need] = frozenset(),
        values: Mapping[str, Form] | None = None, biases: Mapping[str, torch.Tensor] | None = None, dropped: Set[str] = frozenset(),
        seed: int = 0, pool: SpillPool | None = None, replayed: Mapping[str, Callable[[int], Any]] | None = None,
        on_block: Callable[[str, dict[int, Any]], None] | None = None,
        measured: Set[str] | None = None, ranks: Ranks = LONE, alongside: bool = False, asked: Mapping[str, Set[Need]] | None = None,
    ):  # fmt: skip
        if ranks.count > 1 and Need.INPUTS in needs:
            raise SettingError("ranks: must be one where a method needs the inputs themselves, which are not sent. Start one process.")
        self.model, self.script, self.treat, self.ranks = model, script, treat, ranks
        self.biases, self.dropped, self.seed = dict(biases or {}), dropped, seed
        self._made: dict[str, Form] = {}
        self.forms: Mapping[str, Form] = ChainMap(self._made, dict(values) if isinstance(values, dict) else values or {})  # type: ignore[arg-type]
        self.measured, self.asked = measured, asked
        self.pool, self.replayed, self.on_block = pool or SpillPool(None), replayed or {}, on_block
        self._run_beside(ranks.share(batches), needs, alongside)
        self.units = module_units(model)
        self._at: dict[str, list[str]] = defaultdict(list)  # units by the module they are met at
        for module, unit in [*self.units.items(), *((unit.module, unit) for unit in model.units.values() if unit.kind == "expert")]:
            self._at[module].append(unit.name)
        for module, stages in script.inside.items():
            self._at[module] += [unit for stage in stages for unit in stage]
        self.done: set[str] = set(script.uncalled)  # what they are is known before the forward begins
        self._inside, self._passed = dict[str, int](), dict[str, int]()
        self._awaited: Set[str] | None = None
        self._outputs: dict[str, dict[int, Any]] = {}
        self._dense: dict[str, torch.Tensor] = {}
        self._roundings: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {}  # of the inputs of units whose forms take them otherwise
        self._displaced: dict[str, dict[str, nn.Parameter]] = {}
        others = [*script.stacks, *(script.inside if treat else ())]
        stops = stop_names(model, others) if treat or values or biases else []
        self.chain = Chain(
            model.module, self.batches, stops, model.blocks, script.carried, seeds=script.seeds(self.batches), in_turn=script.in_turn
        )  # fmt: skip
        # Weights outside blocks that are loaded when their module is called, and those of them that nothing needs after the last micro-batch.
        trunk = set(model.trunk) if stops else set()
        apart = [unit for unit in model.units.values() if unit.parameter in trunk and self._called_alone(unit) and not script.in_turn]
        # What every call gets another value for is not read at all.
        alone = (unit for unit in model.units.values() if treat is None and unit.name in self.forms and self._called_alone(unit))
        self._given = {unit.parameter for unit in alone}
        self._later = {unit.parameter for unit in apart}
        self._once = {unit.parameter for unit in apart if not unit.aliases and unit.name not in script.reused}

    def _run_beside(self, batches: Sequence[Batch], needs: Set[Need], alongside: bool) -> None:
        """Decide whether the original runs too."""
        wanted = alongside and self.treat is not None and Need.DRIFT in needs
        why, self.chronicle = hindered(self.script, self.forms) if wanted else "", Chronicle()
        if why:
            self.chronicle.note(told("each weight is", why))
        self.originals = Originals(len(batches), wanted and not why)
        self.batches = [*batches, *batches] if self.originals.beside else batches
        self.needs, self.ahead = needs if self.originals.beside else needs - {Need.DRIFT}, Ahead(self)

    @torch.no_grad()  # as a decorator: entered and left around each step, so that two sweeps may alternate
    def run(self) -> Iterator[tuple[int, Any]]:
        """Drive the sweep."""
        self.summed = Repeated(self).run() if self.treat is not None and self.script.repeated else {}
        self.model.weights.load(name for name in self.model.trunk if name not in self._later)
        self._place("")
        try:
            yield from self.chain.run(self._work, self._passes, self.originals.compressed, self.ahead.arrived)
        finally:
            for name in list(self._displaced):
                self._restore(name)
            self.model.weights.release(self.model.trunk)

    def _place(self, block: str) -> None:
        """Put treated weights that no module's forward multiplies (used directly, or seen by no one) into the loaded block."""
        for name in sorted((self.script.uncalled | self.script.within).intersection(self.forms)):
            if self.script.home(name, self.model.blocks) == block:
                self._exchange(self.model.units[name], block)

    def _exchange(self, unit: Unit, block: str) -> None:
        """Put a treated weight into its module, until the block is done."""
        self._displaced.setdefault(block, {}).setdefault(unit.parameter, self.model.weights.parameter(unit.parameter))
        value = self.value(unit)
        assert value is not None
        self.model.weights.put(unit.parameter, value)

    def _restore(self, block: str) -> None:
        for parameter, value in self._displaced.pop(block, {}).items():
            self.model.weights.put(parameter, value)

    def finish(self, awaited: Set[str] | None = None) -> None:
        """Drive the sweep where outputs are not wanted: to its end, or until the units of ``awaited`` are treated and no block is left."""
        self._awaited = None if awaited is None else {unit for unit in awaited if self.script.block_of.get(unit) not in self.replayed}
        with suppress(_EnoughError):
            for _ in self.run():
                pass

    def _work(self, stop: Stop, arrivals: list[tuple[int, Arrival]], complete: bool) -> Iterator[tuple[int, Any]]:
        if stop.kind == "enter":
            return self._enter(stop.name, arrivals)
        if stop.kind == "leave":
            return self._leave(stop.name, arrivals)
        if not complete and any(self.originals.compressed(index) for index, _ in arrivals):
            self.chronicle.note(f"{stop.name}: not all micro-batches call it at the same point; it was measured on those that came first")
        if stop.name in self.script.stacks:
            return Stacks(self).answers(stop.name, arrivals)
        if stop.name in self.script.inside:
            return self._within(stop.name, arrivals)
        if stop.name not in self.units:
            return ((index, arrival.run(self.chain.original(stop.name))) for index, arrival in arrivals)
        return self._unit(self.units[stop.name], stop.name, arrivals)

    def _passes(self, stop: Stop) -> bool:
        """Whether nobody needs the inputs of all micro-batches together at a unit: it is treated, or nothing is."""
        return stop.kind == "unit" and (self.treat is None or all(unit in self.done for unit in self._at[stop.name]))

    def _enter(self, name: str, arrivals: list[tuple[int, Arrival]]) -> Iterator[tuple[int, Any]]:
        self._end_where_enough()
        dropped = {index for index, _ in arrivals if name in self.dropped and self.originals.compressed(index)}
        if len(dropped) < len(arrivals) and name not in self.replayed:
            self.model.weights.load(each for each in self.model.blocks[name].parameters if each not in self._given)
            self._place(name)
        for index, arrival in arrivals:
            first = arrival.stream
            self.pool.admit(first)
            if index in dropped:
                yield index, Answer((first,) if name in self.script.tuples else first)
            elif name in self.replayed:
                yield index, Answer(placed_on(self.replayed[name](index), self.model.weights.device))
            else:
                self._inside[name] = self._inside.get(name, 0) + 1
                yield index, None

    def _leave(self, name: str, arrivals: list[tuple[int, Arrival]]) -> Iterator[tuple[int, Any]]:
        outputs = self._outputs.setdefault(name, {})
        for index, arrival in arrivals:
            self.pool.admit(arrival.output)
            outputs[index] = arrival.output
        self._inside[name] -= len(arrivals)
        self._passed[name] = self._passed.get(name, 0) + len(arrivals)
        if self._inside[name] == 0:
            self._restore(name)
            self.model.weights.release(self.model.blocks[name].parameters)
            self._forget(name)
            if self.on_block is not None:
                self.on_block(name, self._outputs.pop(name))
            self.pool.trim()
        self._outputs.pop(name, None)
        for index, arrival in arrivals:
            yield index, arrival.output

    def _forget(self, block: str) -> None:
        """Let go of what only a finished block's forward needed; forms too, once all micro-batches have passed."""
        for values in (self._dense, self._made) if self._passed[block] >= len(self.batches) else (self._dense,):
            for unit in [unit for unit in values if self.script.block_of.get(unit) == block and unit not in self.script.reused]:
                del values[unit]

    # Units with a module of their own

    def _unit(self, unit: Unit, name: str, arrivals: list[tuple[int, Arrival]]) -> Iterator[tuple[int, Any]]:
        self._end_where_enough()  # the head's own products are the widest of all
        if unit.parameter in self._later - self._given:
            self.model.weights.load([unit.parameter])
        if unit.name not in self.done and self.treat is not None and any(self.originals.compressed(index) for index, _ in arrivals):
            self._treat_stage(unit, name, arrivals)
            self._end_where_enough()
        value, forward = self.value(unit), self._forward(unit, name)
        for index, arrival in arrivals:
            compressed = self.originals.compressed(index)
            with self._swapped(name, value) if compressed else nullcontext():
                output = arrival.run(forward if compressed else self.chain.original(name))
            self.pool.admit(output)
            arrival.args, arrival.kwargs = (), None
            yield index, output
        if unit.parameter in self._once:
            self._passed[unit.name] = self._passed.get(unit.name, 0) + len(arrivals)
            if self._passed[unit.name] >= len(self.batches):
                self.model.weights.release([unit.parameter])
                self._dense.pop(unit.name, None)

    def _called_alone(self, unit: Unit) -> bool:
        """Whether a unit's weight is used by nothing but the calls of its module."""
        modules = {unit.module, *(alias.rpartition(".")[0] for alias in unit.aliases)}
        return unit.kind != "expert" and unit.name not in self.script.uncalled | self.script.within and self.script.read.isdisjoint(modules)

    def _end_where_enough(self) -> None:
        """Leave the sweep where all that is awaited is treated and no block is left to end."""
        if self._awaited is not None and self._awaited <= self.done and not any(self._inside.values()):
            raise _EnoughError

    def _treat_stage(self, unit: Unit, name: str, arrivals: list[tuple[int, Arrival]]) -> None:
        assert self.treat is not None
        members = tuple(self.model.units[member] for member in self.script.stage_of(unit.name) if member not in self.done)
        stats = self._measure(unit, name, arrivals)
        shared = {member.name: self.own(member, stats) for member in members}
        self.pool.settle()
        self.accept(self.treat(Stage(members, self.script.block_of.get(unit.name, ""), shared)))
        self.done.update(shared)
        self.pool.settle()

    def _measure(self, unit: Unit, name: str, arrivals: list[tuple[int, Arrival]]) -> Stats:
        owner = self.chain.owner(name)
        inputs, originals = self.originals.apart([(index, a.tensor) for index, a in arrivals if a.tensor is not None])
        if len(inputs) + len(originals) < len(arrivals):  # it makes its input of what it is given, such as positions of a shape
            return summed(Stats(), self.ranks, unit.name)
        if unit.kind == "embedding":
            cover = self.script.masks.get(name)
            return summed(looked_up(unit, [real_inputs(cover, self.batches[i], ids) for i, ids in inputs]), self.ranks, unit.name)
        unwanted = self.measured is not None and self.measured.isdisjoint(self.script.stage_of(unit.name))
        if unwanted or self.script.data_free(unit) or not has_rows(unit, owner):
            return summed(Stats(count=sum(value.numel() // value.shape[-1] for _, value in inputs)), self.ranks, unit.name)
        begun, those = self.ahead.begun(unit)
        return self._collected(unit, name, [(index, "", value) for index, value in inputs if index not in those], originals, begun)

    def _collected(
        self, unit: Unit, name: str, inputs: Sequence[tuple[int, str, torch.Tensor]], originals: Mapping[int, torch.Tensor] | None = None,
        begun: Collector | None = None,
    ) -> Stats:  # fmt: skip
        """Statistics of a unit's inputs, each of a micro-batch and laid out as the tokens of one of the module's arguments, with those that were
        ``begun``; what the original meets of the same micro-batches goes beside them.
        """
        collector = begun or self.collector(unit, name, inputs[0][2])
        for each in inputs:
            self.collect(collector, unit, name, *each, original=(originals or {}).get(each[0]))
        return self.collected(collector, unit)

    def collector(self, unit: Unit, name: str, value: torch.Tensor) -> Collector:
        """What sums a unit's inputs, of which ``value`` is one."""
        shifts = None if name in self.script.masks else partial(Shifts.of, unit, self.chain.owner(name), value)
        needs = self.needs & self.script.asked(unit.name, self.asked, self.needs)
        return Collector(needs, unit.shape[1], value.device, together=self.script.together.get(unit.name), shifts=shifts)

    def collect(
        self, collector: Collector, unit: Unit, name: str, index: int, argument: str, value: torch.Tensor, original: torch.Tensor | None = None
    ) -> None:  # fmt: skip
        """Add one input, without what its mask covers, and how the ``original``'s drifted from it."""
        cover = self.script.masks.get(f"{name} {argument}".rstrip())
        weighed = partial(self.script.important.weighed, self.script.block_of.get(unit.name, ""), self.batches[index])
        value, original = weighed(value), None if original is None else weighed(original)
        pieces = partial(token_rows, cover, unit, self.chain.owner(name), self.batches[index])
        for rows, real in pieces(value):
            collector.add(rows if real is None else rows[real])
        if collector.drifts and original is not None and original.shape == value.shape:
            for (rows, real), (met, _) in zip(pieces(value), pieces(original)):
                collector.add_drift(*((rows, met) if real is None else (rows[real], met[real])))
        collector.add_images(value)

    def collected(self, collector: Collector, unit: Unit) -> Stats:
        """What was summed, over all ranks. Raises ``ModelError`` where it is no number."""
        stats = collector.stats(self.ranks, unit.name)
        if stats.square is not None and not finite(stats.square):
            raise ModelError(
                f"{unit.name}: its inputs must be finite, hold NaN or Inf. Check the weights before it and the calibration data."
            )
        if collector.drifting and stats.moment is not None and stats.drift is None:
            why = "the covariance is not whole" if stats.covariance is None else "the two meet other tokens"
            self.chronicle.note(told(f"{unit.name}: is", why))
        return stats

    def own(self, unit: Unit, stats: Stats) -> Stats:
        """The stage's statistics with what belongs to one unit; the large parts are shared."""
        return Stats(
            count=stats.count, total=stats.total, square=stats.square, covariance=stats.covariance, blocks=stats.blocks,
            drift=stats.drift, inputs=stats.inputs, slopes=self.script.slopes.get(unit.name), frequency=stats.frequency,
            site_seed=seed_of(self.seed, unit.name), cache=stats.cache, events=list(stats.events),
            raised=self.script.raised.get(unit.name), felt=self.script.felt.get(unit.name),
        )  # fmt: skip

    def accept(self, forms: Mapping[str, Form] | None) -> None:
        """Keep what a stage became; afterwards its units give what that gives."""
        for name, form in (forms or {}).items():
            self._made[name] = form
            self._dense.pop(name, None)

    def value(self, unit: Unit) -> torch.Tensor | None:
        """Stored-layout value of a treated unit, or None where the module's own weight stands."""
        if unit.name not in self.forms:
            return None
        if unit.name not in self._dense:
            weights, form = self.model.weights, self.forms[unit.name]
            value = form.dense().to(weights.dtype(unit.parameter))  # as a runtime has it
            if form.rounding is not None:
                self._roundings[unit.name] = form.rounding
            self._dense[unit.name] = unit.stored(value.to(weights.device, weights.loaded(unit.parameter)))
        return self._dense[unit.name]

    def _forward(self, unit: Unit, name: str) -> Callable:
        """A linear module's own forward, on its input as the unit's form takes it."""
        forward, rounding = self.chain.original(name), self._roundings.get(unit.name)
        return (
            forward
            if rounding is None
            else lambda *args, **given: forward(*map(rounding, args), **{k: rounding(v) for k, v in given.items()})
        )

    @contextmanager
    def _swapped(self, name: str, value: torch.Tensor | None) -> Iterator[None]:
        owner, bias = self.chain.owner(name), self.biases.get(name)
        before = dict(owner._parameters)
        if value is not None:
            owner._parameters["weight"] = nn.Parameter(value, requires_grad=False)
        if bias is not None:
            owner._parameters["bias"] = nn.Parameter(self.model.weights.brought(bias), requires_grad=False)
        try:
            yield
        finally:
            owner._parameters.update(before)

    # Units that their module uses in its own way

    def _within(self, name: str, arrivals: list[tuple[int, Arrival]]) -> Iterator[tuple[int, Any]]:
        if self.treat is not None and not self.done.issuperset(self._at[name]):
            self._treat_within(name, arrivals)
            self._end_where_enough()
        for index, arrival in arrivals:
            output = arrival.run(self.chain.original(name))
            self.pool.admit(output)
            yield index, output

    def _treat_within(self, name: str, arrivals: list[tuple[int, Arrival]]) -> None:
        """Treat its units in the order of their use: what comes later meets what those before it give."""
        assert self.treat is not None
        forward, owner, again = self.chain.original(name), self.chain.owner(name), name in self.script.repeated
        calls = [] if again else [products(owner, forward, arrival.args, arrival.kwargs or {}) for _, arrival in arrivals]
        for stage in self.script.inside[name]:
            met = [(index, arrival.within(partial(next, call))) for (index, arrival), call in zip(arrivals, calls)]
            members = [self.model.units[member] for member in stage if member not in self.done]
            if members:
                block = self.script.block_of.get(members[0].name, "")
                stats = (
                    {each.name: self.own(each, self.summed[stage]) for each in members}
                    if again
                    else self._measure_within(members, name, met)
                )
                self.accept(self.treat(Stage(tuple(members), block, stats)))
                self.done.update(stats)
                for member in members:
                    if member.name in self.forms:
                        self._exchange(member, self.script.home(member.name, self.model.blocks))

    def _measure_within(self, members: Sequence[Unit], name: str, met: Sequence[tuple[int, Met]]) -> dict[str, Stats]:
        inputs = [(index, argument, value) for index, each in met for argument, value in each.inputs]
        if self.wanted(members):
            stats = self._collected(members[0], name, inputs)
        else:
            stats = summed(Stats(count=sum(value.numel() // value.shape[-1] for _, _, value in inputs)), self.ranks, members[0].name)
        found = {member.name: self.own(member, stats) for member in members}
        if stats.moment is not None and any(mixed(each) for _, each in met):
            for each in found.values():
                each.events.append(MIXED)
        return found

    def wanted(self, units: Sequence[Unit]) -> bool:
        """Whether anything is to be measured for some of the units."""
        return self.measured is None or any(unit.name in self.measured for unit in units)


class _EnoughError(Exception):
    """Nobody waits for what remains of a sweep."""
