"""Suspended forwards: the model's own ``forward`` runs once per micro-batch, each in a coroutine that stops at chosen modules.

Masks, rotary tables, position biases, caches and mixed batch sizes stay the model's own business. When all micro-batches stand at the
same module, the sweep has every input of it, works, and resumes each with the output it decides on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import greenlet
import torch
from torch import nn

from modicum.data.splits import Batch, call
from modicum.sweep.modes import Own


@dataclass(frozen=True)
class Stop:
    """Where a forward can be suspended: the call of a unit or a stack of experts, or a block's beginning or end."""

    kind: str
    name: str


@dataclass
class Arrival:
    """One micro-batch standing at a stop: with the call's arguments, or at a block's end with its output."""

    stop: Stop
    args: tuple = ()
    kwargs: dict | None = None
    output: Any = None

    @property
    def tensor(self) -> torch.Tensor | None:
        """The first tensor among the arguments, by position before by keyword."""
        return next((value for value in (*self.args, *(self.kwargs or {}).values()) if isinstance(value, torch.Tensor)), None)


@dataclass(frozen=True)
class Answer:
    """What a block's beginning is resumed with when its own forward must not run."""

    output: Any


class Chain:
    """The suspended forwards of all micro-batches.

    ``units`` and ``blocks`` name the modules to stop at. ``run`` yields (index, output) of each micro-batch as it finishes, one at a
    time, so that outputs never all live at once.
    """

    def __init__(self, module: nn.Module, batches: Sequence[Batch], units: Iterable[str], blocks: Iterable[str]):
        self.module, self.batches = module, batches
        self._own: list[Own] = []
        self._modules = dict(module.named_modules())
        self._units, self._blocks = tuple(units), tuple(blocks)
        self.originals: dict[str, Callable] = {name: self._modules[name].forward for name in (*self._units, *self._blocks)}

    def original(self, name: str) -> Callable:
        """The module's own forward."""
        return self.originals[name]

    def call(self, index: int, name: str, arrival: Arrival) -> Any:
        """What the module's own forward gives, under the modes that the micro-batch ``index`` stands in."""
        with self._own[index].inside():
            return self.originals[name](*arrival.args, **(arrival.kwargs or {}))

    def owner(self, name: str) -> nn.Module:
        """Module by name."""
        return self._modules[name]

    @contextmanager
    def _patched(self) -> Iterator[None]:
        had = {name: self._modules[name].__dict__.get("forward") for name in self.originals}
        try:
            for name in self._units:
                self._modules[name].forward = self._unit_stub(Stop("unit", name))
            for name in self._blocks:
                self._modules[name].forward = self._block_stub(name)
            yield
        finally:
            for name, before in had.items():
                if before is None:
                    self._modules[name].__dict__.pop("forward", None)
                else:
                    self._modules[name].forward = before

    @staticmethod
    def _unit_stub(stop: Stop) -> Callable:
        def forward(*args: Any, **kwargs: Any) -> Any:
            return greenlet.getcurrent().parent.switch(Arrival(stop, args, kwargs))

        return forward

    def _block_stub(self, name: str) -> Callable:
        enter, leave, original = Stop("enter", name), Stop("leave", name), self.originals[name]

        def forward(*args: Any, **kwargs: Any) -> Any:
            parent = greenlet.getcurrent().parent
            answer = parent.switch(Arrival(enter, args, kwargs))
            if isinstance(answer, Answer):
                return answer.output
            return parent.switch(Arrival(leave, output=original(*args, **kwargs)))

        return forward

    def run(
        self,
        work: Callable[[Stop, list[tuple[int, Arrival]], bool], Iterator[tuple[int, Any]]],
        passes: Callable[[Stop], bool] = lambda stop: False,
    ) -> Iterator[tuple[int, Any]]:
        """Drive all forwards. ``work(stop, arrivals, complete)`` yields (index, value) to resume each arrival with; ``complete`` says that every
        live micro-batch stands there. Where ``passes(stop)`` a micro-batch does not wait for the others, so that only one has what is
        between its stops.
        """
        self._own = [Own() for _ in self.batches]
        lets = [greenlet.greenlet(lambda batch=batch: call(self.module, batch)) for batch in self.batches]
        waiting: dict[int, Arrival] = {}

        def switch(index: int, *value: Any) -> Any:
            with self._own[index].inside():
                return lets[index].switch(*value)

        def resume(index: int, value: Any) -> Iterator[tuple[int, Any]]:
            got = switch(index, *value)
            while not lets[index].dead and passes(got.stop):
                for _, answer in work(got.stop, [(index, got)], True):
                    got = switch(index, answer)
            if lets[index].dead:
                yield index, got
            else:
                waiting[index] = got

        try:
            with self._patched():
                for index in range(len(lets)):
                    yield from resume(index, ())
                while waiting:
                    stop = Counter(arrival.stop for arrival in waiting.values()).most_common(1)[0][0]
                    group = sorted(
                        ((index, arrival) for index, arrival in waiting.items() if arrival.stop == stop), key=lambda pair: pair[0]
                    )
                    complete = len(group) == len(waiting)
                    for index, _ in group:
                        del waiting[index]
                    for index, value in work(stop, group, complete):
                        yield from resume(index, (value,))
        finally:
            for own, let in zip(self._own, lets):
                if let and not let.dead:
                    with own.inside():
                        let.throw(greenlet.GreenletExit)
