"""What a rehearsed model's output and its masks are: seen in a few short forwards, one block's weights in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from modicum.core.errors import ModelError
from modicum.core.finite import finite
from modicum.core.unit import Unit
from modicum.data.splits import Batch
from modicum.models.model import Model
from modicum.models.structure import kind_of
from modicum.sweep import within
from modicum.sweep.felt import Run, Seen, Stir, signature
from modicum.sweep.learnt import Learnt
from modicum.sweep.masks import learn
from modicum.sweep.outputs import Outputs
from modicum.sweep.suspend import Arrival, Chain, Stop

if TYPE_CHECKING:
    from modicum.sweep.script import Script

# Before the name of an output, so that it is no module's; outputs of a tuple are numbered.
_OUTPUT = "-> "
# And as people are told of it.
_TOLD = "output "


class Probe:
    """Runs a model on a batch and signs what its units, its modules of stacked experts and its caller are given."""

    def __init__(self, model: Model, outputs: Outputs, units: Mapping[str, Unit], script: Script):
        self.model, self.outputs, self.units, self.script = model, outputs, units, script
        self.seen: Seen = {}
        self.calls: dict[str, int] = {}
        self.stir: Stir | None = None

    @torch.no_grad()
    def __call__(self, batch: Batch, stir: Stir | None = None) -> Seen:
        """What one forward showed; of a module that is called twice each call by itself. ``stir`` exchanges one of the tensors as it is met."""
        self.seen, self.calls, self.stir = {}, {}, stir
        stops = list(dict.fromkeys([*self.units, *self.script.stacks, *self.script.inside]))
        self.chain = Chain(
            self.model.module, [batch], stops, self.model.blocks, self.script.carried, seeds=[0] if self.script.draws else None
        )
        self.model.weights.load(self.model.trunk)
        for _, output in self.chain.run(self._work):
            self.seen |= output_signatures(self.outputs, output)
        self.model.weights.release(self.model.trunk)
        return self.seen

    def _work(self, stop: Stop, arrivals: list[tuple[int, Arrival]], complete: bool) -> Iterator[tuple[int, Any]]:
        index, arrival = arrivals[0]
        if stop.kind == "enter":
            self.model.weights.load(self.model.blocks[stop.name].parameters)
            yield index, None
        elif stop.kind == "leave":
            self.model.weights.release(self.model.blocks[stop.name].parameters)
            yield index, arrival.output
        elif stop.name in self.script.inside:
            given = within.streams(self.chain.owner(stop.name), arrival.args, arrival.kwargs or {})
            yield index, self._signed(stop.name, {f"{stop.name} {argument}": value for argument, value in given.items()}, arrival)
        else:
            yield index, self._signed(stop.name, {} if arrival.tensor is None else {stop.name: arrival.tensor}, arrival)

    def _signed(self, module: str, given: Mapping[str, torch.Tensor], arrival: Arrival) -> Any:
        """What the module makes of tensors by their names, which are signed, one perhaps after it was exchanged wherever it is an argument."""
        self.calls[module] = call = self.calls.get(module, 0) + 1
        whole = module in self.units and self.units[module].kind == "convolution"
        names, args, kwargs = _exchanged(given, call, self.stir, arrival.args, arrival.kwargs or {})
        self.seen |= {name: signature(value, whole=whole) for name, value in names.items()}
        return replace(arrival, args=args, kwargs=kwargs).run(self.chain.original(module))


class Watch:
    """The same of a module in memory that runs as it is: what its innermost modules are given, and its caller."""

    def __init__(self, module: nn.Module, run: Callable[[Batch], Any], outputs: Outputs):
        self.run, self.outputs = run, outputs
        self.parts = {
            name: part for name, part in module.named_modules() if within.known(part) or (name and next(part.children(), None) is None)
        }

    def __call__(self, batch: Batch, stir: Stir | None = None) -> Seen:
        """What one forward showed; ``stir`` exchanges one of the tensors as it is met."""
        seen, calls = dict[str, torch.Tensor](), dict[str, int]()

        def look(name: str, part: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
            calls[name] = call = calls.get(name, 0) + 1
            given = (
                {f"{name} {argument}": value for argument, value in within.streams(part, args, kwargs).items()}
                if within.known(part)
                else {}
            )
            first = next((value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)), None)
            given |= {name: first} if first is not None and not given else {}
            names, args, kwargs = _exchanged(given, call, stir, args, kwargs)
            seen.update({name: signature(value, whole=kind_of(part) == "convolution") for name, value in names.items()})
            return args, kwargs

        hooks = [
            part.register_forward_pre_hook(partial(lambda name, *given: look(name, *given), name), with_kwargs=True)
            for name, part in self.parts.items()
        ]
        try:
            output = self.run(batch)
        finally:
            for hook in hooks:
                hook.remove()
        return seen | output_signatures(self.outputs, output)


def _exchanged(
    given: Mapping[str, torch.Tensor], call: int, stir: Stir | None, args: tuple, kwargs: dict[str, Any]
) -> tuple[dict[str, torch.Tensor], tuple, dict[str, Any]]:  # fmt: skip
    """Tensors by their names at this call, and a call's arguments, in which one of them was exchanged where ``stir`` says so."""
    names = {name if call == 1 else f"{name} {call}": value for name, value in given.items()}
    if stir is None or stir[0] not in names:
        return names, args, kwargs
    before, after = names[stir[0]], stir[1](names[stir[0]])
    swap = lambda value: after if value is before else value
    args, kwargs = tree_map_only(torch.Tensor, swap, (args, kwargs))
    return {name: swap(value) for name, value in names.items()}, args, kwargs


def output_signatures(outputs: Outputs, output: Any) -> Seen:
    """Signatures of an output's judged parts, under names that no module has."""
    return {_OUTPUT + part.name: signature(value) for part, value in outputs.of(output)}


def masks_of(
    probe: Run, batches: Sequence[Batch], outputs: Outputs, calls: Mapping[str, int] = MappingProxyType({})
) -> tuple[Outputs, Learnt]:  # fmt: skip
    """Outputs with their masks, and what was learnt of modules' inputs; those that are called twice have one where it is that of all ``calls``."""
    learnt = learn(probe, batches)
    times = lambda name: 1 if name.startswith(_OUTPUT) else calls.get(name.split(" ")[0], 1)
    later = lambda name: times(name) > 1 and name.rpartition(" ")[2].isdigit()
    found = lambda name: [learnt.covers.get(name), *(learnt.covers.get(f"{name} {call}") for call in range(2, times(name) + 1))]
    covers = {name: cover for name, cover in learnt.covers.items() if not later(name) and len(set(found(name))) == 1}
    ours = {name.removeprefix(_OUTPUT): cover for name, cover in covers.items() if name.startswith(_OUTPUT)}
    inner = {name: cover for name, cover in covers.items() if not name.startswith(_OUTPUT)}
    told = lambda name: f"{_TOLD}{name.removeprefix(_OUTPUT)}" if name.startswith(_OUTPUT) else name
    loose = {key: [told(name) for name in names] for key, names in learnt.loose.items()}
    passed = {key: told(name) for key, name in learnt.passed.items()}
    return outputs.covered(ours), replace(learnt, covers=inner, loose=loose, passed=passed)


def outputs_among(names: Sequence[str]) -> list[str]:
    """Those of what people are told of that are outputs, not what modules are given."""
    return [name for name in names if name.startswith(_TOLD)]


def require_numbers(name: str, outputs: Outputs, output: Any, batch: Batch) -> None:
    """Raise ``ModelError`` where an original's output holds NaN; what is minus infinity by design (a masked vocabulary) may be."""
    for part, value in outputs.of(output):
        real = part.real(batch, value)
        held = value if real is None else value[real]
        if not finite(held) and not bool((torch.isfinite(held) | held.isneginf()).all()):
            raise ModelError(
                f"{name}: its output ({part.name}) must hold numbers, holds NaN or Inf as it came. Check its weights and the data."
            )
