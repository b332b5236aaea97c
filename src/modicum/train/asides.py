"""Asides put beside the modules that they stand at, for as long as a context is open."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from modicum.core.aside import Aside, Call, Spot
from modicum.core.parametrization import State, Step
from modicum.sweep.stage import seed_of

_AT_HOME = "forward"


@dataclass
class Standing:
    """One aside at its place."""

    place: str
    method: Aside
    state: State

    @property
    def owner(self) -> str:
        """What names its tensors."""
        return f"{self.method} at {self.place or 'the whole'}"


def begun(root: nn.Module, asides: Sequence[tuple[str, Aside]], seed: int) -> list[Standing]:
    """Each aside with the state that it begins with, what is trained as parameters of its own."""
    found = []
    for place, method in asides:
        mine = seed_of(seed, f"{method} at {place}")
        state = method.begin(Spot(place, root, torch.Generator().manual_seed(mine), mine))
        found.append(Standing(place, method, replace(state, trained={name: nn.Parameter(t.detach()) for name, t in state.trained.items()})))
    return found


def attach(root: nn.Module, standing: Sequence[Standing], stack: ExitStack, step: Any = None) -> None:
    """Call modules with what stands beside them until ``stack`` closes; ``step()`` says where training is.

    The order is the list's: of two at one place the later one is outside.
    """
    memories: list[dict[str, dict[str, Any]]] = []
    where = step or (lambda: Step(1, 1))
    for each in standing:
        _replaced(root.get_submodule(each.place), partial(_around, root, each, memories, where), stack)
    if standing:
        _replaced(root, partial(_remembering, memories), stack)


def _replaced(owner: nn.Module, around: Any, stack: ExitStack) -> None:
    before = owner.forward
    had = owner.__dict__.get(_AT_HOME)
    owner.__dict__[_AT_HOME] = functools.wraps(before)(partial(around, before))
    stack.callback(lambda: owner.__dict__.pop(_AT_HOME) if had is None else owner.__dict__.__setitem__(_AT_HOME, had))


def _remembering(memories: list[dict[str, dict[str, Any]]], forward: Any, *args: Any, **named: Any) -> Any:
    memories.append({})
    try:
        return forward(*args, **named)
    finally:
        memories.pop()


def _around(root: nn.Module, each: Standing, memories: list[Any], where: Any, forward: Any, *args: Any, **named: Any) -> Any:
    memory = memories[-1].setdefault(str(each.method), {}) if memories else {}
    return each.method.around(each.state, Call(forward, args, named, each.place, root, memory, where()))
