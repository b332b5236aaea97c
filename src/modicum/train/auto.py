"""Which method, and how much of it, each weight gets: a table of what every choice would gain by one gradient sweep, divided by an allocator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from modicum.allocate import ALLOCATORS
from modicum.core.errors import BudgetError
from modicum.core.option import Option
from modicum.core.parametrization import Parametrization, Start, State, Step
from modicum.core.plan import Choice, Limits, Table
from modicum.core.unit import Unit
from modicum.data.splits import Batch
from modicum.forms import Base
from modicum.sweep.stage import seed_of
from modicum.train.finding import planned
from modicum.train.loop import joined
from modicum.train.objectives import Objective, next_token

# What a weight may get, and a vector; nothing is a choice too.
MENU = tuple(f"lora_ga rank={rank} alpha={4 * rank}" for rank in (1, 2, 3, 4, 6, 8, 12, 16, 32))
VECTORS = ("shift",)
NOTHING = "keep"
# Of what the first updates gain, the power that is divided by: a weight that gains much at first gains less of that later.
_POWER = 0.5
# What training holds of each trained number: itself, its gradient, and two moments, in float32.
HELD = 16
# Bytes of a unit in files beside its numbers: names, entries of the header, its part of delta.json.
ENTRY = 700


@dataclass(frozen=True)
class Swept:
    """Gradients (rows, columns) of the loss in each weight, per token, over either half of the rows."""

    first: Mapping[str, torch.Tensor]
    second: Mapping[str, torch.Tensor]

    @property
    def whole(self) -> dict[str, torch.Tensor]:
        """Over both."""
        return {name: (self.first[name] + self.second[name]) / 2 for name in self.first}


def sweep(
    module: nn.Module, rows: Sequence[Batch], units: Mapping[str, Unit], objective: Objective = next_token, together: int = 8
) -> Swept:
    """One pass forward and back over the rows, in two halves. The module's parameters are afterwards as they were."""
    asked = {parameter: parameter.requires_grad for parameter in module.parameters()}
    read = {unit.parameter for unit in units.values()}
    halves = []
    try:
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name in read)
        for half in (rows[::2], rows[1::2]):
            tokens = 0
            for part in joined(half, together):
                losses, count = objective(module, part)
                losses.sum().backward()
                tokens += count
            grads = {name: module.get_parameter(unit.parameter).grad for name, unit in units.items()}
            read_as = lambda name, gradient: torch.zeros(units[name].shape) if gradient is None else units[name].matrix(gradient).float()
            halves.append({name: read_as(name, gradient) / max(1, tokens) for name, gradient in grads.items()})
            module.zero_grad()
    finally:
        for parameter, was in asked.items():
            parameter.requires_grad_(was)
            parameter.grad = None
    return Swept(*halves)


def gain(method: Parametrization, unit: Unit, weight: torch.Tensor, swept: Swept, seed: int) -> tuple[float, int]:
    """By how much the first updates lower the loss, in nats per token and update, and how many numbers the method trains on the unit.

    Optimizers such as Adam move each number by its rate against the sign of its gradient. The sign is that of one half of the rows and the
    gradient that of the other, so that chance gains nothing.
    """
    mine, found, count = seed_of(seed, unit.name), 0.0, 0
    for one, other in ((swept.first, swept.second), (swept.second, swept.first)):
        start = Start(
            unit=unit.name, shape=unit.shape, weight=weight, seed=mine, gradient=one[unit.name], sides=unit.sides,
            chance=torch.Generator().manual_seed(mine), base=Base(unit.shape, unit.dtype, unit.name),
        )  # fmt: skip
        state = method.begin(start)
        leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in state.trained.items()}
        made = method.weight(weight if method.relative else None, State(leaves, state.frozen, state.common, state.base), Step())
        pulls = [
            torch.autograd.grad(made, list(leaves.values()), half[unit.name], retain_graph=True, allow_unused=True) for half in (one, other)
        ]
        found += sum(float((a.sign() * b).sum()) for a, b in zip(*pulls) if a is not None and b is not None)
        count = sum(leaf.numel() for leaf in leaves.values())
    return method.rate * found / 2, count


def table(
    module: nn.Module, units: Mapping[str, Unit], swept: Swept, seed: int = 0, menu: Mapping[bool, Sequence[str]] | None = None
) -> Table:
    """Every choice of every unit with what it spends, and as its harm what the best choice gains more, both to the power that is divided by."""
    offered = menu or {False: MENU, True: VECTORS}
    rows: dict[str, list[Choice]] = {}
    for name, unit in units.items():
        weight = unit.matrix(module.get_parameter(unit.parameter).detach()).float()
        found: list[tuple[str, float, int]] = [(NOTHING, 0.0, 0)]
        for option in reversed(offered[unit.shape[0] == 1]):  # the largest first, of which the others are parts
            (method,) = Option.parse(option, trained=True).steps
            assert isinstance(method, Parametrization)
            if getattr(method, "rank", 1) <= min(unit.shape):
                gained, count = gain(method, unit, weight, swept, seed)
                found.append((option, max(0.0, gained) ** _POWER, count))
        most = max(each for _, each, _ in found)
        rows[name] = [
            Choice(option, 4 * count + ENTRY * (count > 0), count, most - each, memory=HELD * count) for option, each, count in found
        ]
    return Table(rows)


def chosen(found: Table, limits: Limits, allocator: str = "integer_program") -> dict[str, str]:
    """The option of each unit that gets one. Raises ``BudgetError`` where nothing can be trained within the limits."""
    picks = ALLOCATORS[allocator](found, limits)
    plan = {name: found.choices[name][at].option for name, at in picks.items() if found.choices[name][at].option != NOTHING}
    if not plan or not found.fits(picks, limits):
        least = {what: min(c.spends(what) for each in found.choices.values() for c in each if c.option != NOTHING) for what in limits}
        said = ", ".join(f"{what} of {least[what]:g} at least (it is {most:g})" for what, most in limits.items())
        raise BudgetError(f"adapt: what is added must have {said}. Allow more.")
    return plan


def planned_units(module: nn.Module, vectors: bool = True) -> dict[str, Unit]:
    """The units that ``auto`` divides its budget over: those that a plan of one option means, and the vectors beside them."""
    matrices = {name: unit for name, (unit, _) in planned(module, "lora rank=1").units.items()}
    if not vectors:
        return matrices
    return matrices | {name: unit for name, (unit, _) in planned(module, {"*": "shift"}).units.items() if unit.shape[0] == 1}
