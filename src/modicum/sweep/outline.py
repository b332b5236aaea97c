"""What a rehearsal and a search for cuts would see, told from a checkpoint's headers: no weight is read, and blocks that are alike run once.

Weights have stand-ins: numbers by chance, one row for all rows of a large matrix, so that none of them takes memory. A block of the same
list, with the same parameters, modules and settings as one before it, answers with that one's output, and what was seen there holds here.
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from modicum.core.unit import Site
from modicum.data.splits import Batch
from modicum.models.model import Model
from modicum.models.weights import CheckpointWeights
from modicum.sweep.coupling import _Search
from modicum.sweep.outputs import described
from modicum.sweep.rehearsal import _Rehearsal, use_eager_experts
from modicum.sweep.script import Script, StackUse
from modicum.sweep.suspend import Answer, Arrival, Stop

# Weights of a matrix above which its rows are one.
_SMALL = 1 << 18
Twins = dict[str, str]
"""Blocks by name, with the first that is like each of them."""


def outlined(
    model: Model, example: Batch, *, output: str | Callable[[Any], Any] | None = None, classes: str | None = None
) -> tuple[Script, list[Site]]:  # fmt: skip
    """The script and the coupled cuts of a model whose weights are on disk, as ``rehearse`` and ``coupled_cuts`` find them.

    ``output`` and ``classes`` are looked for in the output, as there. ``example`` should be short: masks and what depends on values are not learnt.
    Needs and cost: a forward of one block of each kind, and its memory.
    """
    assert isinstance(model.weights, CheckpointWeights)
    use_eager_experts(model)
    twins = alike(model)
    model.weights.stand_in = stand_in
    try:
        with _OneRow():
            script, output_of, cuts = _outlined(model, example, twins)
    finally:
        model.weights.stand_in = None
    script.outputs = described(output_of, model.config, output, classes)
    return script, cuts


def _outlined(model: Model, example: Batch, twins: Twins) -> tuple[Script, Any, list[Site]]:
    rehearsal = _Outline(model, example, twins)
    rehearsal.run()
    if again := [name for name, times in Counter(rehearsal.script.blocks).items() if times > 1]:
        for name in again:  # entered twice: no step of its own
            del model.blocks[name]
        vars(model).pop("trunk", None)
        rehearsal = _Outline(model, example, twins := alike(model))
        rehearsal.run()
    script = rehearsal.script
    script.work = None  # stand-ins are not multiplied as the weights would be
    script.outputs = described(rehearsal.output, model.config)
    return script, rehearsal.output, _Cuts(model, script, example, twins).run()


class _OneRow(TorchFunctionMode):
    """A product with a matrix of equal rows is that with one of them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.linear and len(args) > 1 and args[1].ndim == 2 and args[1].stride(0) == 0 and len(args[1]) > 1:
            inputs, weight, bias = args[0], args[1], args[2] if len(args) > 2 else kwargs.get("bias")
            found = func(inputs, weight[:1]).expand(*inputs.shape[:-1], len(weight)).contiguous()
            return found if bias is None else found + bias
        return func(*args, **kwargs)


def stand_in(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A value that takes no memory to speak of in the place of a weight."""
    count = torch.Size(shape).numel()
    if not dtype.is_floating_point:
        return torch.zeros(shape, dtype=dtype)
    if len(shape) >= 3 and count > _SMALL:  # a stack, whose slices must lie apart: pages that are there once something is written
        return torch.frombuffer(mmap.mmap(-1, count * dtype.itemsize), dtype=dtype).view(shape)
    chance = torch.Generator().manual_seed(len(name) + sum(name.encode()))
    row = shape if count <= _SMALL else (1, *shape[1:])
    return (0.1 + torch.rand(row, generator=chance) / max(1, shape[-1] if shape else 1) ** 0.5).to(dtype).expand(shape)


def alike(model: Model) -> Twins:
    """Blocks that a block before them stands for."""
    first: dict[str, list[tuple[str, _Built]]] = {}
    found: Twins = {}
    for name, block in model.blocks.items():
        if any(other != name and (other.startswith(f"{name}.") or name.startswith(f"{other}.")) for other in model.blocks):
            continue
        if any(len(model.weights.names[model.weights.first[parameter]]) > 1 for parameter in block.parameters):
            continue
        built, known = _Built.of(model, name, block.index), first.setdefault(block.list_name, [])
        if other := next((other for other, its in known if built.like(its)), ""):
            found[name] = other
        else:
            known.append((name, built))
    return found


@dataclass(frozen=True)
class _Built:
    """How a block is built: its place, its modules with their plain settings, and its parameters."""

    index: int
    parts: list[Any]
    settings: dict[tuple[str, str], Any]

    @classmethod
    def of(cls, model: Model, name: str, index: int) -> _Built:
        parts: list[Any] = []
        settings: dict[tuple[str, str], Any] = {}
        for path, module in model.module.get_submodule(name).named_modules():
            settings |= {(path, key): value for key, value in vars(module).items() if isinstance(value, bool | str | int | float)}
            parts.append((path, type(module)))
            parts += [(path, key, tuple(value.shape)) for key, value in module._parameters.items() if value is not None]
        return cls(index, parts, settings)

    def like(self, other: _Built) -> bool:
        """Whether the other is built alike, but for settings that number the blocks."""
        numbered = lambda key: type(self.settings[key]) is int and self.settings[key] - self.index == other.settings[key] - other.index
        same = self.parts == other.parts and self.settings.keys() == other.settings.keys()
        return same and all(value == other.settings[key] or numbered(key) for key, value in self.settings.items())


class _Outline(_Rehearsal):
    def __init__(self, model: Model, batch: Batch, twins: Twins):
        super().__init__(model, batch)
        self.twins = twins
        self.left: dict[str, Any] = {}

    def _work(self, stop: Stop, arrivals: list[tuple[int, Arrival]], complete: bool) -> Iterator[tuple[int, Any]]:
        index, arrival = arrivals[0]
        if stop.kind == "enter" and (other := self.twins.get(stop.name)) in self.left:
            self._repeat(other, stop.name)
            yield index, Answer(self.left[other])
            return
        if stop.kind == "leave":
            self.left[stop.name] = arrival.output
        yield from super()._work(stop, arrivals, complete)

    def _repeat(self, other: str, name: str) -> None:
        """What was seen in a block holds for one like it."""
        self.script.blocks.append(name)
        for seen in (self.script.tuples, self.script.droppable):
            seen |= {name} if other in seen else set()
        there: Callable[[str], str] = lambda text: _moved(text, other, name)
        inside = lambda names: [text for text in names if text.startswith(f"{other}.")]
        for seen in (self.script.opaque, self.script.read, self.multiplied):
            seen |= set(map(there, inside(seen)))
        for stack in inside(list(self.script.stacks)):
            self._stack_like(self.script.stacks[stack], there)
        for module in inside(list(self.script.inside)):
            self.times[there(module)] = self.times.get(module, 0)
            self.script.inside[there(module)] = tuple(tuple(map(there, stage)) for stage in self.script.inside[module])
        for call in [call for call in self.calls if call.block == other]:
            key = None if call.key is None else (name, *call.key[1:])
            self.calls.append(replace(call, unit=there(call.unit), block=name, key=key))

    def _stack_like(self, use: StackUse, there: Callable[[str], str]) -> None:
        from modicum.models.structure import expert_units

        self.script.stacks[there(use.module)] = use = replace(use, module=there(use.module))
        for attribute, transposed in use.transposed.items():
            self.model.units.pop(self.model.weights.first[f"{use.module}.{attribute}"], None)
            self.model.units.update({unit.name: unit for unit in expert_units(use.module, attribute, self.model.weights, transposed)})


class _Cuts(_Search):
    def __init__(self, model: Model, script: Script, batch: Batch, twins: Twins):
        super().__init__(model, script, batch)
        self.twins = twins
        self.left: dict[str, Any] = {}

    def _work(self, stop: Stop, arrivals: list[tuple[int, Arrival]], complete: bool) -> Iterator[tuple[int, Any]]:
        index, arrival = arrivals[0]
        if stop.kind == "enter" and (other := self.twins.get(stop.name)) in self.left:
            self.found += [self._like(site, other, stop.name) for site in self.found if site.units[-1].name.startswith(f"{other}.")]
            yield index, Answer(self.left[other])
            return
        if stop.kind == "leave":
            self.left[stop.name] = arrival.output
        yield from super()._work(stop, arrivals, complete)

    def _like(self, site: Site, other: str, name: str) -> Site:
        units = tuple(self.model.units[_moved(unit.name, other, name)] for unit in site.units)
        axes = tuple(replace(axis, unit=_moved(axis.unit, other, name)) for axis in site.axes)
        return replace(site, name=_moved(site.name, other, name), units=units, axes=axes)


def _moved(text: str, other: str, name: str) -> str:
    return name + text[len(other) :]
