"""What a rehearsed model's output and its masks are: seen in a few short forwards, one block's weights in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_map_only

from modicum.core.errors import ModelError
from modicum.core.finite import finite
from modicum.core.unit import Unit
from modicum.data.splits import Batch
from modicum.models.model import Model
from modicum.sweep.felt import Run, Seen, Stir, signature
from modicum.sweep.masks import Learnt, learn
from modicum.sweep.outputs import Outputs
from modicum.sweep.suspend import Arrival, Chain, Stop
from modicum.sweep.within import streams

if TYPE_CHECKING:
    from modicum.sweep.script import Script

# Before the name of an output, so that it is no module's; outputs of a tuple are numbered.
_OUTPUT = "-> "


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
            given = streams(self.chain.owner(stop.name), arrival.args, arrival.kwargs or {})
            yield index, self._signed(stop.name, {f"{stop.name} {argument}": value for argument, value in given.items()}, arrival)
        else:
            yield index, self._signed(stop.name, {} if arrival.tensor is None else {stop.name: arrival.tensor}, arrival)

    def _signed(self, module: str, given: Mapping[str, torch.Tensor], arrival: Arrival) -> Any:
        """What the module makes of tensors by their names, which are signed, one perhaps after it was exchanged wherever it is an argument."""
        self.calls[module] = call = self.calls.get(module, 0) + 1
        whole = module in self.units and self.units[module].kind == "convolution"
        names = {name if call == 1 else f"{name} {call}": value for name, value in given.items()}
        if self.stir is not None and self.stir[0] in names:
            before, after = names[self.stir[0]], self.stir[1](names[self.stir[0]])
            args, kwargs = tree_map_only(torch.Tensor, lambda value: after if value is before else value, (arrival.args, arrival.kwargs))
            arrival = replace(arrival, args=args, kwargs=kwargs)
            names = {name: after if value is before else value for name, value in names.items()}
        self.seen |= {name: signature(value, whole=whole) for name, value in names.items()}
        return arrival.run(self.chain.original(module))


def output_signatures(outputs: Outputs, output: Any) -> Seen:
    """Signatures of an output's judged parts, under names that no module has."""
    return {f"{_OUTPUT}{part.name}": signature(value) for part, value in outputs.of(output)}


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
    told = lambda name: f"output {name.removeprefix(_OUTPUT)}" if name.startswith(_OUTPUT) else name
    loose = {key: [told(name) for name in names] for key, names in learnt.loose.items()}
    passed = {key: told(name) for key, name in learnt.passed.items()}
    return outputs.covered(ours), replace(learnt, covers=inner, loose=loose, passed=passed)


def require_numbers(name: str, outputs: Outputs, output: Any, batch: Batch) -> None:
    """Raise ``ModelError`` where an original's output holds NaN; what is minus infinity by design (a masked vocabulary) may be."""
    for part, value in outputs.of(output):
        real = part.real(batch, value)
        held = value if real is None else value[real]
        if not finite(held) and not bool((torch.isfinite(held) | held.isneginf()).all()):
            raise ModelError(
                f"{name}: its output ({part.name}) must hold numbers, holds NaN or Inf as it came. Check its weights and the data."
            )
