"""Modules that round their input before they multiply, as the forms that fill them say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modicum.core.errors import ModelError, quoted
from modicum.core.unit import Unit
from modicum.forms import Form


class Taking:
    """Called before a linear module's forward: its input becomes what ``rounding`` makes of it."""

    def __init__(self, rounding: Callable[[torch.Tensor], torch.Tensor]):
        self.rounding = rounding

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """The arguments of a linear module: one tensor, by position or by name."""
        return tuple(map(self.rounding, args)), {name: self.rounding(value) for name, value in kwargs.items()}


def take_as(unit: Unit, form: Form, modules: Mapping[str, nn.Module], directory: Path) -> None:
    """Have a unit's module take its input as a form does. Raises ``ModelError`` where it is no linear one."""
    if form.rounding is None:
        return
    owner = modules[unit.module]
    if not (isinstance(owner, nn.Linear) or type(owner).__name__ == "Conv1D") or unit.expert is not None:
        raise ModelError(
            f"{directory}: {quoted(unit.name)} must be a linear layer's, whose inputs can be rounded, is not. Check the module."
        )
    owner.register_forward_pre_hook(Taking(form.rounding), with_kwargs=True)


def take_plainly(module: nn.Module) -> None:
    """Have all parts of a module take their inputs as they are: what filled it before says nothing of what fills it next."""
    for part in module.modules():
        for key in [key for key, hook in part._forward_pre_hooks.items() if isinstance(hook, Taking)]:
            del part._forward_pre_hooks[key]
            part._forward_pre_hooks_with_kwargs.pop(key, None)
