"""A rehearsal: one short forward that shows in which order units are called, which share an input, and which are never called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from modicum.core.errors import ModelError, ModicumError
from modicum.core.unit import Unit
from modicum.data.splits import Batch, chance_of, one_row
from modicum.models.model import Model
from modicum.models.structure import expert_units, find_stacks
from modicum.sweep import within
from modicum.sweep.beside import DRAWS, TURNS, shares_state
from modicum.sweep.carried import kept, written
from modicum.sweep.experts import Use, Watch
from modicum.sweep.observe import Probe, masks_of, require_numbers
from modicum.sweep.outputs import Outputs, described
from modicum.sweep.products import Loans, Products, is_product
from modicum.sweep.script import Script, StackUse
from modicum.sweep.streams import Streams
from modicum.sweep.suspend import Arrival, Chain, Stop
from modicum.sweep.work import Counting


def stop_names(model: Model, others: Iterable[str] = ()) -> list[str]:
    """Modules at which a sweep stops: those of all units, every alias's module, and ``others`` that own several units."""
    names = []
    for unit in model.units.values():
        names += [] if unit.direct else [unit.module, *(alias.rpartition(".")[0] for alias in unit.aliases)]
    return list(dict.fromkeys([*names, *others]))


def module_units(model: Model) -> dict[str, Unit]:
    """Unit whose weight is the ``weight`` of a module, by module name, tied modules included."""
    found = {}
    for unit in model.units.values():
        if unit.kind != "expert" and not unit.direct:
            found[unit.module] = unit
            found.update({alias.rpartition(".")[0]: unit for alias in unit.aliases})
    return found


def use_eager_experts(model: Model) -> None:
    """Ask Transformers for the plain loop over experts, whose products can be watched."""
    if callable(choose := getattr(model.module, "set_experts_implementation", None)):
        try:
            choose("eager")
        except (ValueError, AttributeError, TypeError):
            model.notes.append("experts keep their own implementation")


@contextmanager
def weight_reads(names: Mapping[int, str], report: Callable[[str, Any], None]) -> Iterator[None]:
    """Report by name and value every read of ``weight`` on the modules whose identities are in ``names``."""
    lookup = nn.Module.__getattr__

    def watch(module: nn.Module, name: str) -> Any:
        value = lookup(module, name)
        if name == "weight" and id(module) in names:
            report(names[id(module)], value)
        return value

    nn.Module.__getattr__ = watch  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__getattr__ = lookup  # type: ignore[method-assign]


@dataclass(frozen=True)
class _Call:
    """One call of a unit in ``block``. Calls of one ``key`` see the same rows, None shares with nobody; ``held`` keeps the input alive."""

    unit: str
    block: str
    key: tuple | None = None
    held: torch.Tensor | None = None


class _Rehearsal:
    calling = False

    def __init__(self, model: Model, batch: Batch):
        self.model, self.script = model, Script()
        self.units = module_units(model)
        owners = dict.fromkeys(unit.module for unit in model.units.values() if unit.direct)
        modules = dict(model.module.named_modules())
        self.times: dict[str, int] = {}  # calls of each of those
        self.own = [name for name in owners if within.known(modules[name])]
        # A stack is met where its module is called, so nothing inside may be met itself.
        around = {name[:place] for name in [*self.units, *self.own] for place, letter in enumerate(name) if letter == "." or not place}
        self.candidates = {
            name: shapes for name, shapes in find_stacks(model.module, model.weights).items() if name not in self.units.keys() | around
        }
        self.calls: list[_Call] = []
        self.inside: list[str] = []
        names = list(dict.fromkeys([*self.units, *self.own, *self.candidates]))
        self.chain = Chain(model.module, [batch], names, model.blocks, seeds=[chance_of(batch)])
        self.entered: dict[str, Any] = {}
        self.streams = Streams(model.blocks)
        self.maps: list[torch.Tensor] = []  # what convolutions along one axis gave
        self.multiplied: set[str] = set()  # parameters of modules' own that a product takes
        self.borrowed: set[str] = set()  # units with which something is computed outside their layers' calls
        self.loans = Loans(lambda name: None if self.calling else self.borrowed.add(self.units[name].name))
        self.counting = Counting(self._direct)

    def run(self) -> _Rehearsal:
        """Run it."""
        # Outside inference mode, under which torch does not count a tensor's changes.
        reads = weight_reads({id(self.chain.owner(name)): name for name in self.units}, self._read)
        before, versions = kept(self.model.module), self._versions()
        with torch.inference_mode(False), torch.no_grad(), reads, Products(self._bare, self.multiplied.add), self.loans, self.counting:
            self.model.weights.load(self.model.trunk)
            try:
                for _, output in self.chain.run(self._work):
                    self.output = output
                    self.script.carried = written(before, kept(self.model.module))
            finally:
                self.loans.end()  # what is let go is looked at
                self.model.weights.release(
                    [*self.model.trunk, *(name for block in self.inside for name in self.model.blocks[block].parameters)]
                )
        self.script.draws, self.script.work = self.chain.drew, self.counting.work
        self._require_unwritten(versions)
        self.script.droppable -= self.streams.branches(self.script.blocks, self.script.droppable)
        self._group()
        return self

    def _versions(self) -> dict[str, int]:
        """How often the weights of a module in memory were written to; what a checkpoint loads is the run's own."""
        weights = self.model.weights
        if weights.lazy:
            return {}
        known = {name: weights.parameter(name) for name in weights.names}
        return {name: value._version for name, value in known.items() if not value.is_inference()}

    def _require_unwritten(self, before: dict[str, int]) -> None:
        """Raise ``ModelError`` where a forward changes a weight: what is measured would be another model's each time."""
        shortened = {unit.parameter for unit in self.model.units.values() if getattr(self.chain.modules.get(unit.module), "max_norm", None)}
        if changed := [
            name for name, version in self._versions().items() if version != before.get(name, version) and name not in shortened
        ]:
            raise ModelError(
                f"{self.model.name}: its forward must leave its weights alone, it writes to {changed[0]}. Write them before the call, or compute "
                "what is used from them."
            )

    def _work(self, stop: Stop, arrivals: list[tuple[int, Arrival]], complete: bool) -> Iterator[tuple[int, Any]]:
        index, arrival = arrivals[0]
        if stop.kind == "enter":
            self.inside.append(stop.name)
            self.counting.block = stop.name
            self.entered[stop.name] = given = arrival.args[0] if arrival.args else (arrival.kwargs or {}).get("hidden_states")
            self.streams.note(stop.name, given)
            self.model.weights.load(self.model.blocks[stop.name].parameters)
            yield index, None
        elif stop.kind == "leave":
            self.inside.remove(stop.name)
            self.counting.block = self.inside[-1] if self.inside else ""
            self.loans.end()
            self._leave(stop.name, arrival.output)
            self.model.weights.release(self.model.blocks[stop.name].parameters)
            yield index, arrival.output
        elif stop.name in self.candidates:
            yield index, self._stack(stop.name, arrival)
        elif stop.name in self.own:
            yield index, self._within(stop.name, arrival)
        else:
            yield index, self._unit(stop.name, arrival)

    def _bare(self) -> dict[int, str]:
        """Units that may be weights or tables, by the memory they lie in now."""
        return self._lying(unit.name for unit in self.model.units.values() if unit.kind == "parameter")

    def _direct(self) -> dict[int, str]:
        """Units that their module multiplies in its own way, by the memory they lie in now."""
        return self._lying(unit.name for unit in self.model.units.values() if unit.direct or unit.kind == "parameter")

    def _lying(self, names: Iterable[str]) -> dict[int, str]:
        values = {name: self.model.weights.held(name) for name in names}
        return {value.untyped_storage().data_ptr(): name for name, value in values.items() if value.device.type != "meta"}

    def _read(self, name: str, value: Any) -> None:
        if not self.calling:
            self.script.read.add(name)
            self.loans.lend(name, value)

    def _leave(self, name: str, output: Any) -> None:
        self.script.blocks.append(name)
        if isinstance(output, tuple):
            self.script.tuples.add(name)
        got = self.entered.pop(name)
        first = output[0] if isinstance(output, tuple) and output else output
        rest = output[1:] if isinstance(output, tuple) else ()
        if isinstance(got, torch.Tensor) and isinstance(first, torch.Tensor) and got.shape == first.shape and all(v is None for v in rest):
            self.script.droppable.add(name)

    def _unit(self, name: str, arrival: Arrival) -> Any:
        unit, owner, got = self.units[name], self.chain.owner(name), arrival.tensor
        self.calls.append(_Call(unit.name, block := self.inside[-1] if self.inside else "", input_key(unit, owner, block, got), got))
        self.calling = True
        try:
            with self.counting.of(unit.name):
                output = arrival.run(self.chain.original(name))
            values = [value for value in (got, output) if isinstance(value, torch.Tensor)]
            self.maps += [output] if "convolution" in unit.kind and isinstance(output, torch.Tensor) and output.ndim == 3 else []
            self.script.met[unit.name] = sum(value.numel() for value in values)
            with self.counting.off():
                if got is None or not is_product(owner, got, output):
                    self.script.opaque.add(unit.name)
            if got is not None and got.ndim != 3:
                self.script.folded.add(unit.name)
            return output
        finally:
            self.calling = False

    def _stack(self, name: str, arrival: Arrival) -> Any:
        uses: dict[str, bool] = {}
        owner = self.chain.owner(name)
        stacks = {attribute: owner._parameters[attribute].detach() for attribute in self.candidates[name]}  # type: ignore[union-attr]

        def see(use: Use) -> None:
            uses.setdefault(use.attribute, use.transposed)

        before = len(self.counting.order)
        with Watch(stacks, see), self.counting.of(name):
            output = arrival.run(self.chain.original(name))
        if uses and name not in self.script.stacks:
            self.script.stacks[name] = StackUse(name, tuple(uses), uses)
            for attribute, transposed in uses.items():
                self.model.units.pop(self.model.weights.first[f"{name}.{attribute}" if name else attribute], None)
                self.model.units.update({unit.name: unit for unit in expert_units(name, attribute, self.model.weights, transposed)})
        block = self.inside[-1] if self.inside else ""
        experts = [unit for unit in self.model.units.values() if unit.kind == "expert" and unit.module == name]
        self.calls += [_Call(unit.name, block) for unit in experts]
        self.counting.share(before, name, {unit.name: unit.size for unit in experts})
        return output

    def _within(self, name: str, arrival: Arrival) -> Any:
        owner, forward, block = self.chain.owner(name), self.chain.original(name), self.inside[-1] if self.inside else ""
        output = arrival.run(forward)
        self.calling = True
        try:
            with self.counting.off():
                found = arrival.run(lambda *args, **kwargs: within.stages(owner, forward, args, kwargs, output))
        except Exception:  # whatever torch raises where a call is not as it is thought of
            found = ()
        finally:
            self.calling = False
        if not found:
            self._tell(f"{name}: what its weights multiply could not be told from what it gives; they take options that need no inputs")
        stages = tuple(tuple(self._of(name, attribute) for attribute in stage) for stage in found)
        kept = tuple(tuple(unit for unit in stage if unit) for stage in stages)
        self.times[name] = self.times.get(name, 0) + 1
        self.script.inside[name] = kept if self.script.inside.get(name, kept) == kept else ()
        self.calls += [_Call(unit, block, (block, name, stage)) for stage in self.script.inside[name] for unit in stage]
        return output

    def _of(self, module: str, attribute: str) -> str:
        """The unit of a module's own parameter, or nothing: one that is tied has others who use it."""
        first = self.model.weights.first.get(f"{module}.{attribute}" if module else attribute, "")
        unit = self.model.units.get(first)
        return first if unit is not None and not unit.aliases else ""

    def _tell(self, note: str) -> None:
        self.model.notes += [note] if note not in self.model.notes else []

    def disturbed(self, others: Sequence[Batch]) -> bool:
        """Whether forwards on what was run here and on something else disturb each other."""
        stops = [*self.units, *self.script.stacks, *self.script.inside]
        return shares_state(self.model, self.script, stops, self.chain.batches[0], self.output, others)

    def _group(self) -> None:
        counts = Counter(call.unit for call in self.calls)
        for unit in [unit for unit in self.model.units.values() if unit.kind == "parameter" and unit.name not in self.multiplied]:
            del self.model.units[unit.name]  # a table, which is added
        # What is also multiplied elsewhere is no more its calls' alone than what is never called: it stands in its place, with all uses.
        lent = self.borrowed.intersection(counts) - self.script.within
        self.script.reused |= {name for name, count in counts.items() if count > 1 or name in lent}
        self._leave_out_reused()
        counts = Counter(call.unit for call in self.calls)
        self.script.uncalled = {name for name in self.model.units if name not in counts or name in lent}
        stages: dict[object, list[str]] = {}
        for call in self.calls:
            self.script.block_of.setdefault(call.unit, call.block)
            alone = call.key is None or call.unit in self.script.reused | self.script.opaque
            members = stages.setdefault(call.unit if alone else call.key, [])
            if call.unit not in members:
                members.append(call.unit)
        self.script.stages = [tuple(members) for members in stages.values()]

    def _leave_out_reused(self) -> None:
        """Weights of modules that are called twice meet inputs that they made themselves, which take a pass of their own; what is used in another way
        too takes options that need none.
        """
        for name, stages in list(self.script.inside.items()):
            units = {unit for stage in stages for unit in stage}
            if not units or units & self.script.reused:
                mine = [call for call in self.calls if call.unit in units]
                self.calls = [call for call in self.calls if call.unit not in units]
                self.script.reused -= units
                if units and self._at_home(name, mine):
                    self.calls += {call.unit: call for call in reversed(mine)}.values()
                    self.script.repeated.add(name)
                else:
                    del self.script.inside[name]

    def _at_home(self, name: str, calls: list[_Call]) -> bool:
        """Whether these are all calls of one module, in the block that its weights belong to."""
        counts = Counter(call.unit for call in calls)
        home = lambda call: Script.home(call.unit, self.model.blocks) == call.block
        return set(counts.values()) == {self.times[name]} and all(map(home, calls))


def input_key(unit: Unit, module: nn.Module, block: str, inputs: torch.Tensor | None) -> tuple | None:
    """What two calls in one block have in common where their units see the same rows: the tensor, its version, and how rows are taken of it.

    None where that cannot be told: an input of indices, or one made under inference mode, whose changes torch does not count.
    """
    if inputs is None or not inputs.is_floating_point() or inputs.is_inference():
        return None
    patches: tuple = (unit.kind,) if unit.kind == "transposed convolution" else ()
    if unit.kind == "convolution":
        names = ("kernel_size", "stride", "dilation", "padding", "padding_mode", "groups")
        patches = (type(module), *(getattr(module, name) for name in names))
    return block, id(inputs), inputs._version, unit.shape[1], patches


def _run(model: Model, batch: Batch) -> _Rehearsal:
    """A rehearsal of one row of ``batch``, or of all of it where one row cannot run."""
    short = one_row(batch)
    if short is not batch:
        try:
            return _Rehearsal(model, short).run()
        except (ModicumError, MemoryError):
            raise
        except Exception:  # whatever a forward raises at one row: the whole batch says whether it is more than that
            model.weights.release([*model.trunk, *(name for block in model.blocks.values() for name in block.parameters)])
    rehearsal = _Rehearsal(model, batch).run()
    rehearsal.script.whole = short is not batch
    return rehearsal


def _without_blocks(model: Model, names: Iterable[str], batch: Batch) -> _Rehearsal:
    """A rehearsal in which these blocks are part of the trunk: one that a forward enters twice is no step of its own."""
    for name in list(names):
        del model.blocks[name]
    vars(model).pop("trunk", None)
    return _run(model, batch)


def _in_turn(model: Model, batch: Batch, outputs: Outputs) -> _Rehearsal:
    """A rehearsal of forwards that share state: nothing is done block by block, for that needs all batches in one block."""
    rehearsal = _without_blocks(model, model.blocks, batch)
    rehearsal.script.outputs, rehearsal.script.in_turn = outputs, True
    model.notes.append(TURNS)
    return rehearsal


def still_alone(model: Model, batch: Batch, others: Sequence[Batch], outputs: Outputs) -> bool:
    """Whether forwards still do not disturb each other, of a model whose rehearsal took that for known. Raises what a rehearsal raises."""
    rehearsal = _run(model, batch)
    rehearsal.script.outputs = outputs
    return not rehearsal.disturbed([batch, *others])


def rehearse(
    model: Model, batch: Batch, others: Sequence[Batch] = (), *, output: str | Callable[[Any], Any] | None = None, classes: str | None = None,
    alone: bool = False,
) -> Script:  # fmt: skip
    """Run one row of ``batch`` through the model, or all of it where one row cannot run; adds the expert units it discovers to ``model.units``.

    Then it runs beside another example, which shows whether forwards share state that would mix, unless they are known to stand ``alone``. Where
    ``batch`` or ``others`` hold padding, a few forwards of two rows tell what their masks cover. ``output`` and ``classes`` say what of the output
    is judged (`sweep.outputs.described`). Holds the unit inputs of what it runs in memory; every block is read once by each forward.
    Raises what the model's own forward raises at the whole batch, ``ModelError`` where its output holds no number to judge.
    """
    use_eager_experts(model)
    rehearsal = _run(model, batch)
    if again := [name for name, times in Counter(rehearsal.script.blocks).items() if times > 1]:
        rehearsal = _without_blocks(model, again, batch)
    rehearsal.script.outputs = described(rehearsal.output, model.config, output, classes, rehearsal.maps)
    if not alone and rehearsal.disturbed([batch, *others]):
        rehearsal = _in_turn(model, batch, rehearsal.script.outputs)
    script, outputs = rehearsal.script, rehearsal.script.outputs
    model.notes += [DRAWS] if script.draws else []
    probe = Probe(model, outputs, rehearsal.units, script)
    script.outputs, script.learnt = masks_of(probe, [batch, *others], outputs, probe.calls)
    require_numbers(model.name, script.outputs, rehearsal.output, rehearsal.chain.batches[0])
    return script
