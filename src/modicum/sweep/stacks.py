"""Stacks of experts in a sweep: each expert meets the tokens that it is sent, and those that met few are sent others, for statistics alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map_only

from modicum.core.method import Need
from modicum.core.unit import Routed, Stats, Unit
from modicum.sweep.collect import Collector
from modicum.sweep.experts import Use, Watch, routed
from modicum.sweep.originals import told
from modicum.sweep.stage import Stage, pooled
from modicum.sweep.suspend import Arrival

if TYPE_CHECKING:
    from modicum.sweep.engine import Sweep

# An expert that met fewer tokens than this share of its columns takes the pooled covariance of its stack, or is sent others, so many for each column
# if there are.
STARVED, SENT = 0.25, 4


class Stacks:
    """What a sweep does at a module that owns stacks."""

    def __init__(self, sweep: Sweep):
        self.sweep = sweep

    def answers(self, name: str, arrivals: list[tuple[int, Arrival]]) -> Iterator[tuple[int, Any]]:
        """Treat its experts, product after product, and go on with what they have become."""
        if self.sweep.treat is not None and (met := [each for each in arrivals if self.sweep.originals.compressed(each[0])]):
            for attribute in self.sweep.script.stacks[name].attributes:
                units = [unit for unit in self.sweep.model.units.values() if unit.module == name and unit.parameter.endswith(attribute)]
                if units[0].name not in self.sweep.done:
                    self._treat(name, attribute, units, met)
        treated = any(unit.name in self.sweep.forms for unit in self.sweep.model.units.values() if unit.module == name)
        for index, arrival in arrivals:
            with self._swapped(name) if treated and self.sweep.originals.compressed(index) else nullcontext():
                output = arrival.run(self.sweep.chain.original(name))
            self.sweep.pool.admit(output)
            yield index, output

    def _treat(self, name: str, attribute: str, units: list[Unit], arrivals: list[tuple[int, Arrival]]) -> None:
        assert self.sweep.treat is not None
        data_free = bool(self.sweep.script.data_free(units[0]))
        every = self.sweep.needs - {Need.DRIFT}
        asked = (self.sweep.script.asked(unit.name, self.sweep.asked, every) for unit in units)
        needs: Set[Need] = frozenset() if data_free or not self.sweep.wanted(units) else every & frozenset().union(*asked)
        if self.sweep.originals.beside and needs:
            self.sweep.chronicle.note(told(f"{name}: each expert is", "it meets other tokens than in the original"))
        found = self._met(name, attribute, units, arrivals, needs)
        starving = {unit.name for unit, mine in zip(units, found) if mine.count < STARVED * unit.shape[1]}
        sent = self._sent(name, attribute, [unit for unit in units if unit.name in starving], arrivals, needs)
        if sent:
            self.sweep.chronicle.note(f"{name}.{attribute}: {len(sent)} starved experts were measured on tokens that went to others")
        whole = pooled(found) if starving - sent.keys() else Stats()
        stats = {}
        for unit, mine in zip(units, found):
            starved = unit.name in starving
            if starved and unit.name not in sent and not data_free:
                self.sweep.chronicle.note(f"{name}.{attribute}: starved experts take the covariance of all experts of their stack")
            stats[unit.name] = self.sweep.own(unit, sent.get(unit.name, whole) if starved else mine)
            stats[unit.name].frequency = torch.tensor([float(mine.count)])
            stats[unit.name].events += [f"starved: {mine.count} tokens"] if starved else []
        if (
            Need.ROUTED in self.sweep.needs
            and attribute == self.sweep.script.stacks[name].attributes[-1]
            and self.sweep.wanted(units)
            and not data_free
        ):
            for member, met in self._routed(name, attribute, units, arrivals).items():
                stats[member].routed = met
        self.sweep.accept(self.sweep.treat(Stage(tuple(units), self.sweep.script.block_of.get(units[0].name, ""), stats)))
        self.sweep.done.update(stats)

    def _met(
        self, name: str, attribute: str, units: list[Unit], arrivals: list[tuple[int, Arrival]], needs: Set[Need], to: Sequence[int] = ()
    ) -> list[Stats]:  # fmt: skip
        """What the experts ``units`` of one stack met, of tokens as they were routed or all sent ``to`` these experts in turn."""
        together = self.sweep.script.together.get(units[0].name)
        device = self.sweep.model.weights.device
        collectors: dict[int | None, Collector] = {
            unit.expert: Collector(needs, unit.shape[1], device, self.sweep.pool, together) for unit in units
        }

        def add(use: Use) -> None:
            if use.attribute == attribute and use.expert in collectors:
                collectors[use.expert].add(use.inputs)

        with self._swapped(name):
            owner = self.sweep.chain.owner(name)
            stacks = {other: owner._parameters[other].detach() for other in self.sweep.script.stacks[name].attributes}  # type: ignore[union-attr]
            for index, arrival in arrivals:
                with Watch(stacks, add):
                    self._without_padding(name, index, arrival, to)()
        return [collectors[unit.expert].stats(self.sweep.ranks, unit.name) for unit in units]

    def _sent(
        self, name: str, attribute: str, starving: list[Unit], arrivals: list[tuple[int, Arrival]], needs: Set[Need]
    ) -> dict[str, Stats]:
        """What experts that met few tokens meet of those that are sent to them instead, by unit.

        Nothing where that is not asked for, and of a module that is not told where tokens go, but decides it itself.
        """
        found: dict[str, Stats] = {}
        if not self.sweep.script.sent or not needs:
            return found
        own = [arrival.tensor for _, arrival in arrivals]
        tokens = sum(self.sweep.ranks.gather(f"{name} tokens", sum(value.shape[:-1].numel() for value in own if value is not None)))
        told = any(self._chosen(name, value) for _, arrival in arrivals for value in tree_leaves((arrival.args, arrival.kwargs)))
        while starving and all(self.sweep.ranks.gather(f"{name} told", told)):
            some, starving = (starving[: (count := max(1, tokens // (SENT * starving[0].shape[1])))], starving[count:])
            met = self._met(name, attribute, some, arrivals, needs, [unit.expert for unit in some if unit.expert is not None])
            found |= {unit.name: mine for unit, mine in zip(some, met) if mine.count >= STARVED * unit.shape[1]}
        return found

    def _without_padding(self, name: str, index: int, arrival: Arrival, to: Sequence[int] = ()) -> Callable[[], Any]:
        """The call of a module of experts, on the tokens alone that are no padding, sent ``to`` these experts in turn."""
        cover, first, given = self.sweep.script.masks.get(name), arrival.tensor, (arrival.args, arrival.kwargs or {})
        real = None if cover is None or first is None else cover.real(self.sweep.batches[index], first.shape[:-1])
        if real is not None and first is not None:
            here, lead = real.expand(first.shape[:-1]).to(first.device), first.shape[:-1]
            alone = lambda value: value[here].reshape(*[1] * (len(lead) - 1), -1, *value.shape[len(lead) :])
            given = tree_map_only(torch.Tensor, lambda value: alone(value) if value.shape[: len(lead)] == lead else value, given)
        if to and first is not None:
            given = tree_map_only(torch.Tensor, partial(self._redirected, name, to), given)
        return partial(replace(arrival, args=given[0], kwargs=given[1]).run, self.sweep.chain.original(name))

    def _chosen(self, name: str, value: Any) -> bool:
        """Whether a module of experts is told by ``value`` which of them each token goes to (tokens, experts of each)."""
        if not isinstance(value, torch.Tensor) or value.dtype not in (torch.int32, torch.int64) or value.ndim != 2 or not value.numel():
            return False
        count = len(self.sweep.chain.owner(name).get_parameter(self.sweep.script.stacks[name].attributes[0]))
        return value.shape[1] <= count and int(value.min()) >= 0 and int(value.max()) < count

    def _redirected(self, name: str, to: Sequence[int], value: torch.Tensor) -> torch.Tensor:
        """The same, of which the first of each token is one of these in turn."""
        if not self._chosen(name, value):
            return value
        first = torch.tensor(to, dtype=value.dtype, device=value.device).repeat(-(-len(value) // len(to)))[: len(value), None]
        others = torch.where(value[:, 1:] == first, value[:, :1], value[:, 1:])
        return torch.cat([first, others], 1)

    def _routed(self, name: str, attribute: str, units: list[Unit], arrivals: list[tuple[int, Arrival]]) -> dict[str, list[Routed]]:
        """What each expert's last product met on all ranks, and where it went; rows of the module's outputs are counted through all micro-batches.

        Nothing where the module's output is not a sum of its experts' outputs.
        """
        mine: list[tuple[dict[int, Routed], int] | None] = []
        with self._swapped(name):
            owner = self.sweep.chain.owner(name)
            stacks = {other: owner._parameters[other].detach() for other in self.sweep.script.stacks[name].attributes}  # type: ignore[union-attr]
            for index, arrival in arrivals:
                mine.append(routed(self._without_padding(name, index, arrival), stacks, attribute))
                self.sweep.pool.admit([met.inputs for met in mine[-1][0].values()] if mine[-1] is not None else [])
        found: dict[str, list[Routed]] = {unit.name: [] for unit in units}
        rows = 0
        for call in (call for calls in zip_longest(*self.sweep.ranks.gather(f"{name} routed", mine), fillvalue=({}, 0)) for call in calls):
            if call is None:
                self.sweep.chronicle.note(f"{name}: its output is not a weighted sum of its experts'; they cannot make up for each other")
                return {}
            for expert, met in call[0].items():
                found[units[expert].name].append(replace(met, tokens=met.tokens + rows))
            rows += call[1]
        return found

    @contextmanager
    def _swapped(self, name: str) -> Iterator[None]:
        """The module's stacks with every treated expert's value in place."""
        owner = self.sweep.chain.owner(name)
        before = dict(owner._parameters)
        for attribute in self.sweep.script.stacks[name].attributes:
            held = before[attribute]
            treated = [
                u
                for u in self.sweep.model.units.values()
                if u.module == name and u.parameter.endswith(attribute) and u.name in self.sweep.forms
            ]
            if treated and held is not None:
                stack = held.detach().clone()
                for unit in treated:
                    value = self.sweep.value(unit)
                    assert value is not None and unit.expert is not None
                    stack[unit.expert] = value
                owner._parameters[attribute] = nn.Parameter(stack, requires_grad=False)
        try:
            yield
        finally:
            owner._parameters.update(before)
