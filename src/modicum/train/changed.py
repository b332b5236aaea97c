"""A module that computes with a delta for as long as a context is open: its weights changed, and what stands beside them in its place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import nn

from modicum.core.errors import ModelError
from modicum.core.parametrization import State
from modicum.delta import Delta
from modicum.delta.beside import fingerprint
from modicum.models.trainable import trainable
from modicum.train.asides import Standing, attach
from modicum.train.computed import Computed


@contextmanager
def changed(module: nn.Module, delta: Delta) -> Iterator[nn.Module]:
    """Inside, ``module`` computes with ``delta``, prompts and added modules as well as weights; outside it is what it was.

    Weights are made once and rounded to the dtype that the module stores. Raises ``ModelError`` for a delta of another base, or of a place that the
    module does not have.

        >>> from torch import nn
        >>> from modicum import trained
        >>> model = nn.Sequential(nn.Linear(8, 8))
        >>> with trained(model, "lora rank=2") as t:
        ...     learnt = t.delta()
        >>> with changed(model, learnt) as same:
        ...     same is model
        True
    """
    names = dict(module.named_modules())
    standing = []
    for each in delta.asides:
        if each.place not in names:
            raise ModelError(
                f"delta: {each.method} stands at {each.place!r}, which this model does not have. Use the model it was made on."
            )
        if each.beneath and each.beneath != fingerprint(names[each.place]):
            raise ModelError(f"delta: {each.method} was made beside other weights than this model has. Use it on its own base.")
        standing.append(Standing(each.place, each.aside, State(each.tensors)))
    with ExitStack() as stack:
        for owner, made in _tables(module, delta).items():
            table = Computed(owner)
            table.make = {attribute: partial(_given, value) for attribute, value in made.items()}
            table.install()
            stack.callback(table.remove)
        attach(module, standing, stack)
        yield module


def _tables(module: nn.Module, delta: Delta) -> dict[nn.Module, dict[str, torch.Tensor]]:
    units = trainable(module)
    if missing := [name for name in delta.forms if name not in units]:
        raise ModelError(f"{missing[0]}: must be a weight of this model, is none. Use the delta on its own base.")
    read = lambda name: units[name].matrix(module.get_parameter(units[name].parameter).detach())
    made: dict[str, torch.Tensor] = {}
    for name, weight in delta.on(read):
        unit = units[name]
        stored = module.get_parameter(unit.parameter).detach()
        if unit.expert is None:
            made[unit.parameter] = unit.stored(weight).to(stored.dtype)
        else:
            made.setdefault(unit.parameter, stored.clone())[unit.expert] = unit.stored(weight).to(stored.dtype)
    found: dict[nn.Module, dict[str, torch.Tensor]] = {}
    same = {id(module.get_parameter(name)): value for name, value in made.items()}
    for owner in module.modules():
        for attribute, held in owner._parameters.items():
            if id(held) in same:
                found.setdefault(owner, {})[attribute] = same[id(held)]
    return found


def _given(value: torch.Tensor) -> torch.Tensor:
    return value
