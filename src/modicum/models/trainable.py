"""What may be trained or changed in a module: its units, experts of stacks, and parameters that are no matrices."""

from __future__ import annotations

import torch
from torch import nn

from modicum.core.unit import Unit
from modicum.models.structure import expert_units, find_stacks, find_units
from modicum.models.weights import Weights


def trainable(module: nn.Module) -> dict[str, Unit]:
    """Units by name: matrices as everywhere, each expert of a stack, and every other parameter as one row."""
    weights = Weights(module)
    units = find_units(module, weights)
    for prefix, stacks in find_stacks(module, weights).items():
        turned = bool(getattr(module.get_submodule(prefix), "is_transposed", False))
        for attribute in stacks:
            experts = expert_units(prefix, attribute, weights, turned)
            units.pop(experts[0].parameter, None)
            units |= {unit.name: unit for unit in experts}
    treated = {unit.parameter for unit in units.values()}
    for name in weights.names:
        held = weights.held(name)
        if name not in treated and held.is_floating_point() and held.numel():
            units[name] = Unit(
                name=name, parameter=name, module=name.rpartition(".")[0], kind="parameter", shape=(1, held.numel()),
                stored_shape=tuple(held.shape), dtype=held.dtype, aliases=weights.names[name][1:],
            )  # fmt: skip
    return units


def matrix(module: nn.Module, unit: Unit) -> torch.Tensor:
    """A parameter as its unit's matrix (rows, columns), of the same memory."""
    found: torch.Tensor = unit.matrix(module.get_parameter(unit.parameter).detach())
    return found
