"""Parameters that are computed whenever somebody reads them, while everything that lists or saves them sees what is stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class Computed(dict):
    """Stands in the place of a module's ``_parameters``: reading ``module.weight`` gives what ``make`` gives, and listing gives what is stored.

    So whoever uses the weight gets the computed one: the module's own forward, another module's, an expert's index. Within one call of the
    module a value is made once.
    """

    def __init__(self, owner: nn.Module):
        super().__init__(owner._parameters)
        self.owner, self.make = owner, dict[str, Callable[[], torch.Tensor]]()
        self._made: list[dict[str, torch.Tensor]] = []
        self._plain: Any = owner._parameters
        self._hooks: list[Any] = []

    def install(self) -> None:
        """Take the place of the owner's parameters."""
        self.owner.__dict__["_parameters"] = self
        self._hooks = [
            self.owner.register_forward_pre_hook(self._enter, prepend=True),
            self.owner.register_forward_hook(self._leave, always_call=True),
        ]

    def remove(self) -> None:
        """Give the owner its own parameters back, as the same dictionary."""
        for hook in self._hooks:
            hook.remove()
        self.owner.__dict__["_parameters"] = self._plain
        if isinstance(self.owner, nn.RNNBase):
            self._flat(False)

    def __getitem__(self, name: str) -> Any:
        if name not in self.make:
            return super().__getitem__(name)
        made = self._made[-1] if self._made else {}
        if name not in made:
            made[name] = self.make[name]()
        return made[name]

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._made.append({})
        if isinstance(module, nn.RNNBase):
            self._flat(True)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._made.pop()
        if isinstance(module, nn.RNNBase):
            self._flat(False)

    def _flat(self, computed: bool) -> None:
        """Recurrent layers keep a list of their weights."""
        read = self.__getitem__ if computed else self._plain.__getitem__
        self.owner.__dict__["_flat_weights"] = [read(name) for name in self.owner._flat_weights_names]  # type: ignore[union-attr]
