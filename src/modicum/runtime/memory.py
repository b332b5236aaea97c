"""A run's memory is planned before it starts: what it holds whatever is spilled, which statistics fit, and what is left for activations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from modicum.core.budget import readable
from modicum.core.errors import BudgetError
from modicum.core.memory import free_memory, own_memory, trim
from modicum.core.method import Method, Need
from modicum.core.option import Option
from modicum.core.unit import Unit
from modicum.data.splits import Batch, count_rows, count_tokens
from modicum.models.model import Model
from modicum.sweep import Script

# Libraries that are loaded only when they are needed, and what the allocator keeps for itself.
_LATER_BYTES = 120_000_000
# Activations that must have room at the least.
_LEAST_BYTES = 32_000_000
# Bytes per entry of a covariance, and of each factor of it; what is beside them while one is made in float64, and a root and a Gram matrix.
_ENTRY, _MAKING, _MAKING_ROOT = 4, 8, 16
# Columns of the narrowest blocks: no wider than some of the groups that share a scale.
_NARROW = 128
# Where columns are so many, and so many times the rows, a whole covariance and its factor would take nearly all of the time: blocks are then of so
# many columns for each row, within these bounds. Of a pitch tracker's 8,192 columns at 3 bits, blocks of 512, 1,024, 2,048 and 4,096 lose 7.9, 6.5,
# 4.8 and 4.3 ten-thousandths of the output.
_WIDE, _FLAT, _EACH, _BOUNDS = 4096, 16, 64, (512, 2048)
# Bytes that the covariances of output gradients may take in all; wider units keep the diagonal.
_GRADIENT_BYTES = 2_000_000_000
# Bytes per weight of a unit: in float32, its codes, and its dense value while it is checked; more while a slab of it is solved.
_WHOLE, _SOLVING, _SLAB = 14, 24, 1 << 24
# Bytes per weight of what codes aim at in its place.
_AIMED = 4
# Tensors of a layer's width that a forward holds at once for each token, and of the vocabulary's width.
_INNER, _LOGITS = 6, 3


@dataclass(frozen=True)
class Plan:
    """What of the memory goes where: bytes for activations kept for later (None: no limit) and for the covariances of output gradients, and
    what there is to tell of units whose inputs are measured in part.
    """

    activations: int | None = None
    gradients: int = _GRADIENT_BYTES
    events: tuple[str, ...] = ()


def planned(model: Model, script: Script, batch: Batch, options: Iterable[Option], ram: int | None = None, free: int | None = None) -> Plan:
    """Plan a run within ``ram``, or else within half of what is ``free`` now: others may want memory too, and activations do.

    Decides which units' covariances are taken whole and which in blocks (``script.together``): of a stage as many columns together as fit.
    Raises ``BudgetError`` where a unit's statistics or one micro-batch cannot fit at all, with what would.
    """
    steps = {step for option in options for step in option.steps if Need.COVARIANCE in step.wanted()}
    need = _Need(model, script, frozenset(map(type, steps)), *_asked(steps))
    free = free_memory(ram) if free is None else free
    left = free - _LATER_BYTES - weights_held(model)
    if ram is not None:
        _require_ram(model, need, batch, ram)  # what the process has reserved beside it counts against limits, and serves again
    else:
        _require_free(model, script, batch, need, left)
    room = left - _LEAST_BYTES if ram is not None else left // 2
    events = [event for stage in need.stages() for event in _taken(need, stage, room, left)]
    most = max([forward(model, batch), *(need.of(stage, script.together.get(stage[0].name)) for stage in need.stages())])
    return Plan(max(0, left - most), min(_GRADIENT_BYTES, max(0, room - most) // 2), tuple(events))


def largest(model: Model, script: Script, batch: Batch, options: Iterable[Option]) -> int:
    """Bytes that this process has at the most beside activations kept for later, every covariance whole."""
    steps = {step for option in options for step in option.steps if Need.COVARIANCE in step.wanted()}
    need = _Need(model, script, frozenset(map(type, steps)), *_asked(steps))
    return own_memory() + weights_held(model) + max([forward(model, batch), *map(need.of, need.stages())])


def _taken(need: _Need, stage: Sequence[Unit], room: int, left: int) -> Iterator[str]:
    """Decide for the units of one stage, which share their inputs, and tell where it is not the whole covariance."""
    rows, columns = sum(unit.shape[0] for unit in stage), stage[0].shape[1]
    flat = columns >= max(_WIDE, _FLAT * rows) and any(step.blockwise for step in need.steps) and not need.script.data_free(stage[0])
    if not need.steps or (need.of(stage) <= room and not flat):
        return
    widths = [1 << power for power in range((columns - 1).bit_length() - 1, _NARROW.bit_length() - 1, -1)]
    fitting = [width for width in widths if need.of(stage, width) <= room]
    most = min(max(_EACH * rows, _BOUNDS[0]), _BOUNDS[1]) if flat else columns
    width = next((width for width in fitting if width <= most), _NARROW)
    why = (
        f"whose covariance with what is made of it would take {readable(need.of(stage))}, more than there is room for ({readable(room)})"
        if need.of(stage) > room
        else f"whose covariance and its factor would take nearly all of the time for a weight of {rows} rows"
    )
    more = "This is so whatever memory there is" if flat else "More free memory, or a larger --ram, gives the whole"
    for unit in stage:
        if width < columns:
            need.script.together[unit.name] = width
            yield (
                f"{unit.name}: its inputs have {columns} columns, {why}. It was measured in blocks of {width} columns; what columns of two "
                f"blocks have in common counts as nothing. {more}."
            )


def _require_ram(model: Model, need: _Need, batch: Batch, ram: int) -> None:
    """Raise ``BudgetError`` with the smallest workable ``ram`` where it is less."""
    needed = max([forward(model, batch), *(need.of(stage, _NARROW) for stage in need.stages())])
    needed += own_memory() + _LATER_BYTES + weights_held(model)
    if ram - needed < _LEAST_BYTES:
        narrow = model.dtype == torch.bfloat16 and model.computed != model.dtype
        less = f" It computes in {str(model.computed)[6:]}; --compute bfloat16 takes less, and longer." if narrow else ""
        raise BudgetError(f"--ram: must be at least {readable(needed + 2 * _LEAST_BYTES)} for this model, got {readable(ram)}.{less}")


def _require_free(model: Model, script: Script, batch: Batch, need: _Need, left: int) -> None:
    """Raise ``BudgetError`` where what is free cannot do: for what one unit needs at the least."""
    rows = 1 if script.whole else count_rows(batch)
    for name, values in script.met.items():
        if (size := values * rows * model.computed.itemsize) > left:
            raise BudgetError(
                f"{name}: what it reads and gives for one batch must fit in memory, takes {readable(size)} where {readable(max(0, left))} are free. "
                "Pass a smaller --micro-batch (or batches of fewer rows), or shorter --tokens."
            )
    for stage in need.stages():
        if (size := need.of(stage, _NARROW)) > left:
            raise BudgetError(
                f"{stage[0].name}: what is measured of its inputs and made of it must fit in memory, takes at least {readable(size)} where "
                f"{readable(max(0, left))} are free. Free some, raise the limit, or choose options that need no inputs."
            )


def _asked(steps: Iterable[Method]) -> tuple[bool, bool]:
    """Whether some of the steps ask how inputs drift, and how the output feels rows together."""
    wanted = frozenset().union(*(step.wanted() for step in steps))
    return Need.DRIFT in wanted, Need.FELT in wanted


@dataclass(frozen=True)
class _Need:
    """Bytes that stages need while they are measured and treated by methods of some ``steps``.

    ``drift``: that of their inputs is too; ``felt``: rows go in turns.
    """

    model: Model
    script: Script
    steps: frozenset[type[Method]]
    drift: bool = False
    felt: bool = False

    def stages(self) -> list[list[Unit]]:
        """Units measured together: those that share inputs, and the experts of a stack."""
        found: dict[Any, list[Unit]] = {}
        for unit in self.model.units.values():
            alone = unit.name in self.script.uncalled
            key = (unit.module, unit.parameter) if unit.kind == "expert" else unit.name if alone else self.script.stage_of(unit.name)
            found.setdefault(key, []).append(unit)
        return list(found.values())

    def of(self, stage: Sequence[Unit], together: int | None = None) -> int:
        """Bytes of a stage with covariances of ``together`` columns, or whole ones: measured, factorized, and its largest weight solved."""
        columns, largest = stage[0].shape[1], max(stage, key=lambda unit: unit.size)
        entries = columns * min(columns, together or columns) if self._measured(stage[0]) else 0
        beside = _ENTRY * entries * (len(stage) - 1) if stage[0].kind == "expert" else 0
        rows = largest.shape[0] if 4 * largest.shape[0] ** 2 <= _GRADIENT_BYTES else 0
        aimed = _AIMED * largest.size * (self.drift + 2 * self.felt) + (2 * _ENTRY + _MAKING) * rows**2 * self.felt
        held = (_WHOLE + max((step.held for step in self.steps), default=0)) * largest.size
        return beside + self._entry(largest) * entries + held + aimed + _SOLVING * min(largest.size, _SLAB)

    def _measured(self, unit: Unit) -> bool:
        return bool(self.steps) and not self.script.data_free(unit)

    def _entry(self, unit: Unit) -> int:
        """Bytes per entry of a covariance: it, a factor for each method, and what the making of one takes."""
        tall = unit.shape[0] > unit.shape[1] and any(step.family() == "repair" for step in self.steps)
        return _ENTRY * (1 + self.drift + len(self.steps)) + (_MAKING_ROOT if tall else _MAKING)


def whole_model(model: Model, batch: Batch) -> int:
    """Bytes that this process would have with the compressed model loaded whole, as Transformers does, and run on a batch."""
    trim()
    return own_memory() + model.dense_bytes + forward(model.stored, batch)


def weights_held(model: Model) -> int:
    """Bytes of the weights that a streaming sweep will load, in the dtype it computes in: all outside blocks that are not there yet, one block of
    each of two sweeps, and its treated values.
    """
    if not model.weights.lazy and not model.weights.turned:
        return 0
    trunk = [name for name in model.trunk if model.weights.held(name).device.type == "meta"]
    blocks = max((_size(model, block.parameters) for block in model.blocks.values()), default=0)
    return _size(model, trunk) + 3 * blocks


def forward(model: Model, batch: Batch) -> int:
    """Bytes of what a micro-batch's forward makes and lets go: inside a block, and at the head."""
    trunk, units = set(model.trunk), model.units.values()
    inside = max((max(unit.shape) for unit in units if unit.parameter not in trunk), default=0)
    head = lambda unit: unit.kind != "embedding" or model.is_causal  # a tied embedding is the head too
    outside = max((unit.shape[0] for unit in units if unit.parameter in trunk and head(unit)), default=0)
    return count_tokens([batch]) * model.computed.itemsize * (_INNER * inside + _LOGITS * outside)


def _size(model: Model, names: Iterable[str]) -> int:
    return sum(model.weights.held(name).numel() * model.weights.loaded(name).itemsize for name in names)
