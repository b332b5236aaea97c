"""What makes a unit's input: earlier numbers that a factor on the input's columns may move into, found by trying.

A product with a power of two leaves all digits of a float as they are. So the rows of an earlier weight, or the entries of a norm, are multiplied
by such powers, and each column of the input that follows to the bit has told which row made it: its number in binary, a digit with each run of the
block. What is taken must then give the block's output to the bit with the factors on one side and their inverses on the other: so it is known that
nothing else sees what was multiplied. Norms, gates and up projections, values of attention with heads that share them need no special case.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from modicum.core.unit import Unit
from modicum.data.splits import Batch
from modicum.models.model import Model
from modicum.sweep.coupling import shortened
from modicum.sweep.rehearsal import module_units
from modicum.sweep.script import Script
from modicum.sweep.suspend import Arrival, Chain, Stop

# Tokens of a text that are enough to see what makes what, and octaves by which factors are tried.
_TOKENS, _OCTAVES = 48, 3
_KINDS = ("linear", "conv1d")


@dataclass(frozen=True)
class Maker:
    """The ``module`` that makes an input, its ``parameters`` of which entries (a norm's) or rows (a linear's) are multiplied together, and the row
    that makes each of the input's columns (columns,).
    """

    module: str
    parameters: tuple[str, ...]
    rows: torch.Tensor


def makers(model: Model, script: Script, batch: Batch, stages: Collection[tuple[str, ...]]) -> dict[tuple[str, ...], Maker]:
    """The maker of the input of each of these ``stages`` (names of units with one input), of those that have one in their block."""
    search = _Search(model, script, shortened(script.example(batch), _TOKENS), stages)
    with torch.no_grad():
        model.weights.load(model.trunk)
        for _ in search.chain.run(search.work):
            pass
    return search.found


class _Search:
    def __init__(self, model: Model, script: Script, batch: Batch, stages: Collection[tuple[str, ...]]):
        self.model, self.stages, self.found = model, stages, dict[tuple[str, ...], Maker]()
        self.units, self.modules = module_units(model), dict(model.module.named_modules())
        self.chain = Chain(model.module, [batch], [], model.blocks, script.carried, seeds=script.seeds([batch]))

    def work(self, stop: Stop, arrivals: list[tuple[int, Arrival]], complete: bool) -> Iterator[tuple[int, Any]]:
        index, arrival = arrivals[0]
        parameters = self.model.blocks[stop.name].parameters
        if stop.kind == "enter":
            self.model.weights.load(parameters)
            inside = [stage for stage in self.stages if stage[0].startswith(f"{stop.name}.")]
            run = _Run(self, stop.name, arrival) if inside else None
            for stage in inside:
                assert run is not None
                if (maker := run.maker(stage)) is not None:
                    self.found[stage] = maker
            yield index, None
        else:
            self.model.weights.release(parameters)
            yield index, arrival.output


@dataclass
class _Seen:
    """What a run of a block gave: its output, inputs of units and outputs of norms by module in call order."""

    output: list[torch.Tensor]
    inputs: dict[str, torch.Tensor]
    outputs: dict[str, torch.Tensor]


class _Run:
    """One block, run as often as is needed to see what makes what."""

    def __init__(self, search: _Search, block: str, arrival: Arrival):
        self.search, self.block, self.arrival = search, block, arrival
        self.names = [name for name in search.modules if name.startswith(f"{block}.")]
        self.seen = self._seen()

    def _seen(self) -> _Seen:
        seen, hooks = _Seen([], {}, {}), []

        def hook(name: str) -> Any:
            def note(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
                given = next((value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)), None)
                if given is not None and isinstance(output, torch.Tensor) and name not in seen.outputs:
                    seen.inputs[name], seen.outputs[name] = given.detach().clone(), output.detach().clone()

            return note

        try:
            hooks = [self.search.modules[name].register_forward_hook(hook(name), with_kwargs=True) for name in self.names]
            output = self.arrival.run(self.search.chain.original(self.block))
        finally:
            for each in hooks:
                each.remove()
        seen.output = [value.clone() for value in tree_leaves(output) if isinstance(value, torch.Tensor)]
        return seen

    def maker(self, stage: tuple[str, ...]) -> Maker | None:
        """What makes the input of a stage; the nearest that does."""
        users = [self.search.model.units[name] for name in stage]
        if any(user.kind not in _KINDS or user.module not in self.seen.inputs for user in users):
            return None
        return next((maker for maker in self._candidates(users[0]) if self._gives_the_same(maker, users)), None)

    def _candidates(self, user: Unit) -> Iterator[Maker]:
        """Norms whose output the input is, then linears that were called before, each with the rows that its columns follow."""
        order = list(self.seen.outputs)
        value, earlier = self.seen.inputs[user.module], order[: order.index(user.module)][::-1]
        columns = value.shape[-1]
        for name in earlier:
            own = {f"{name}.{part}": held for part, held in self.search.modules[name].named_parameters(recurse=False)}
            unit = self.search.units.get(name)
            if unit is None:
                fits = bool(own) and all(held.shape == (columns,) for held in own.values())
                if not fits or not torch.equal(self.seen.outputs[name], value):
                    continue
            elif unit.kind not in _KINDS or columns % unit.shape[0] or unit.aliases:
                continue
            count = columns if unit is None else unit.shape[0]
            rows = self._followed(tuple(own), user, count)
            if rows is not None:
                yield Maker(name, tuple(own), rows)

    def _followed(self, parameters: tuple[str, ...], user: Unit, count: int) -> torch.Tensor | None:
        """The row that each column of a unit's input follows (columns,); None where one follows none."""
        before = self.seen.inputs[user.module]
        rows, places = torch.zeros(before.shape[-1], dtype=torch.long), torch.arange(count)
        # That all follow is asked first: most candidates fail there.
        for digit in (None, *range((count - 1).bit_length())):
            octaves = torch.ones(count, dtype=torch.long) if digit is None else places >> digit & 1
            with self._multiplied(dict.fromkeys(parameters, octaves), {}):
                after = self._seen().inputs[user.module]
            twice, same = (_equal(after, factor * before) for factor in (2, 1))
            if not bool((twice ^ same).all()) or (digit is None and not bool(twice.all())):
                return None
            rows |= 0 if digit is None else twice.long() << digit
        return rows

    def _gives_the_same(self, maker: Maker, users: list[Unit]) -> bool:
        """Whether the block's output stays to the bit with factors on the maker's rows and their inverses on the users' columns."""
        chance = torch.Generator().manual_seed(0)
        octaves = torch.randint(-_OCTAVES, _OCTAVES + 1, (int(maker.rows.max()) + 1,), generator=chance)
        with self._multiplied(dict.fromkeys(maker.parameters, octaves), {user.name: -octaves[maker.rows] for user in users}):
            found = self._seen().output
        return len(found) == len(self.seen.output) and all(map(torch.equal, found, self.seen.output))

    @contextmanager
    def _multiplied(self, rows: Mapping[str, torch.Tensor], columns: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Inside, rows of parameters and columns of units are multiplied by two to these powers."""
        weights, units = self.search.model.weights, self.search.units
        changed: dict[str, torch.Tensor] = {}
        by_name = {unit.parameter: unit for unit in units.values()}
        for name, octaves in rows.items():
            changed[name] = raised(weights.parameter(name).data, by_name.get(name), rows=octaves)
        for name, octaves in columns.items():
            unit = self.search.model.units[name]
            changed[unit.parameter] = raised(weights.parameter(unit.parameter).data, unit, columns=octaves)
        kept = {name: weights.parameter(name).data for name in changed}
        try:
            for name, value in changed.items():
                weights.parameter(name).data = value
            yield
        finally:
            for name, value in kept.items():
                weights.parameter(name).data = value


def raised(
    stored: torch.Tensor, unit: Unit | None, *, rows: torch.Tensor | None = None, columns: torch.Tensor | None = None
) -> torch.Tensor:
    """A parameter as it is stored times two to these powers, by the rows and columns of its unit's matrix; by its entries where it is no unit's."""
    value = stored if unit is None else unit.matrix(stored)
    for octaves, dim in ((rows, 0), (columns, 1)):
        if octaves is not None:
            factor = torch.ldexp(torch.ones(len(octaves), dtype=torch.float64), octaves).to(value.device)
            value = (value.double() * (factor[:, None] if dim == 0 and value.ndim == 2 else factor)).to(stored.dtype)
    return value if unit is None else unit.stored(value)


def _equal(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Which columns are equal to the bit (columns,); those that are zero throughout equal nothing."""
    same = (left == right) | (left.isnan() & right.isnan())
    return same.flatten(0, -2).all(0) & (right != 0).flatten(0, -2).any(0)
