"""What is computed beside a module: trained inputs and added modules, which no weight can hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from modicum.core.method import Trainable
from modicum.core.parametrization import State, Step

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Spot:
    """Where an aside begins: the module ``name`` ("" is the whole) within ``root``; ``chance`` and ``seed`` are of the place alone."""

    name: str
    root: nn.Module
    chance: torch.Generator
    seed: int

    @property
    def module(self) -> nn.Module:
        """The module itself."""
        return self.root.get_submodule(self.name)


@dataclass(frozen=True)
class Call:
    """One call of the module that an aside stands at.

    ``forward`` is what the module does by itself, and ``args`` and ``named`` what it was given. ``memory`` is one dict for all asides of a
    method during one call of the whole model, empty at its beginning, for those that are connected.
    """

    forward: Callable[..., Any]
    args: tuple[Any, ...]
    named: Mapping[str, Any]
    name: str
    root: nn.Module
    memory: dict[str, Any]
    step: Step

    def plain(self) -> Any:
        """What the module gives by itself."""
        return self.forward(*self.args, **self.named)


@dataclass(frozen=True, kw_only=True)
class Aside(Trainable):
    """Computes beside modules at named places: prompts before a model's inputs, layers between its layers.

    A file writes ``begin`` and ``around``, and ``places`` where it does not stand at the whole model. What it trains is float32. A delta keeps it
    by its place, with the hash of the module that it was trained beside.
    """

    # Whether the weights beneath can take it in, so that a plain checkpoint computes the same.
    mergeable: ClassVar[bool] = False

    def places(self, root: nn.Module) -> list[str]:
        """Names of modules that it may stand at, in the model's order. Raises ``ModelError`` for a model that has no such place."""
        return [""]

    def begin(self, spot: Spot) -> State:
        """What is trained, and what is frozen, at one place."""
        raise NotImplementedError

    def around(self, state: State, call: Call) -> Any:
        """What a call of the module gives with the aside; differentiable in what is trained."""
        raise NotImplementedError
