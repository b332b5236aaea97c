"""Networks that write deltas: of what one example does to a weight they make what the weight should become."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn

from modicum.core.errors import ModelError
from modicum.core.unit import Unit
from modicum.delta import Delta
from modicum.forms import Base, Form, LowRank, Sum
from modicum.models.trainable import trainable
from modicum.train.computed import Computed


@dataclass(frozen=True)
class Factors:
    """What a loss does to a weight: its gradient is ``gradients.T @ inputs``, with inputs (tokens, columns) and gradients (tokens, rows)."""

    inputs: torch.Tensor
    gradients: torch.Tensor


class Editor(Protocol):
    """Writes changes: ``parameters`` are its own, trained over many examples; ``write`` gives factors (left, right) of each unit's change.

    The change is ``left.T @ right`` with left (tokens, rows) and right (tokens, columns), differentiable in the editor's parameters.
    """

    def parameters(self) -> Any:
        """What of the editor is trained."""
        ...

    def write(self, seen: Mapping[str, Factors]) -> Mapping[str, tuple[torch.Tensor, torch.Tensor]]:
        """Factors of each unit's change."""
        ...


def factors(module: nn.Module, names: Sequence[str], loss: Any) -> dict[str, Factors]:
    """Inputs and output gradients of linear layers by the names of their weights, over one call of ``loss()``, which runs the module.

    Raises ``ModelError`` for a weight that is no linear layer's, or that the loss does not reach.
    """
    units, seen = trainable(module), dict[str, list[Any]]()
    hooks = []
    for name in names:
        if name not in units or units[name].kind not in ("linear", "conv1d"):
            raise ModelError(f"{name}: must be the weight of a linear layer for a network to write it, is not.")
        seen[name] = []
        hooks.append(module.get_submodule(units[name].module).register_forward_hook(partial(_note, seen[name])))
    asked = {parameter: parameter.requires_grad for parameter in module.parameters()}
    try:
        value = loss()
        if any(not found for found in seen.values()):
            raise ModelError(
                f"{next(name for name in names if not seen[name])}: must be used by the model where the loss is taken, is not."
            )
        outputs = [output for found in seen.values() for _, output in found]
        gradients = iter(torch.autograd.grad(value, outputs))
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, was in asked.items():
            parameter.requires_grad_(was)
    flat = lambda tensors: torch.cat([tensor.detach().reshape(-1, tensor.shape[-1]).float() for tensor in tensors])
    return {name: Factors(flat([x for x, _ in found]), flat([next(gradients) for _ in found])) for name, found in seen.items()}


def _note(found: list[Any], module: nn.Module, args: tuple, output: torch.Tensor) -> None:
    found.append((args[0], output))


@contextmanager
def written(module: nn.Module, changes: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> Iterator[None]:
    """Inside, the module computes with its weights and the changes, differentiable in them; nothing is left behind."""
    units, tables = trainable(module), dict[nn.Module, Computed]()
    for name, (left, right) in changes.items():
        unit = units[name]
        owner, attribute = module.get_submodule(unit.module), unit.parameter.rpartition(".")[2]
        table = tables.setdefault(owner, Computed(owner))
        table.make[attribute] = partial(_changed, unit, module.get_parameter(unit.parameter), left, right)
    for table in tables.values():
        table.install()
    try:
        yield
    finally:
        for table in tables.values():
            table.remove()


def _changed(unit: Unit, stored: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    made = (unit.matrix(stored.detach()).float() + left.T @ right).to(stored.dtype)
    return unit.stored(made)


def delta(module: nn.Module, changes: Mapping[str, tuple[torch.Tensor, torch.Tensor]], base: str = "") -> Delta:
    """What an editor wrote, as a change of the module."""
    units, forms = trainable(module), dict[str, Form]()
    for name, (left, right) in changes.items():
        unit = units[name]
        forms[name] = Sum((Base(unit.shape, unit.dtype, name), LowRank(left.detach().T.contiguous(), right.detach().contiguous())))
    return Delta(forms, base=base).stamped(lambda name: units[name].matrix(module.get_parameter(units[name].parameter).detach()))
