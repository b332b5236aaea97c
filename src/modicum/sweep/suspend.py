"""Suspended forwards: the model's own ``forward`` runs once per micro-batch, each in a coroutine that stops at chosen modules.

Masks, rotary tables, position biases, caches and mixed batch sizes stay the model's own business. When all micro-batches stand at the
same module, the sweep has every input of it, works, and resumes each with the output it decides on.
"""

from __future__ import annotations

import contextvars
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import greenlet
import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from modicum.core.errors import ModelError
from modicum.data.splits import Batch, call
from modicum.sweep.carried import Memory
from modicum.sweep.modes import Chance, Modes, seed_all, uncut


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
    modes: Modes | None = field(default=None, repr=False)

    def apart(self) -> Arrival:
        """The same with tensors of its own, whatever the forward that made them does next."""
        args, kwargs, output = tree_map_only(torch.Tensor, torch.clone, (self.args, self.kwargs, self.output))
        return Arrival(self.stop, args, kwargs, output, self.modes)

    @property
    def tensor(self) -> torch.Tensor | None:
        """The first tensor among the arguments, by position before by keyword."""
        return next((value for value in (*self.args, *(self.kwargs or {}).values()) if isinstance(value, torch.Tensor)), None)

    @property
    def stream(self) -> Any:
        """What a block goes on from: its first argument by position, else its hidden states, else its first tensor under any name."""
        return self.args[0] if self.args else (self.kwargs or {}).get("hidden_states", self.tensor)

    def run(self, forward: Callable) -> Any:
        """What ``forward`` gives for these arguments, in the modes in which the module was called."""
        return self.within(lambda: forward(*self.args, **(self.kwargs or {})))

    def within(self, step: Callable[[], Any]) -> Any:
        """What ``step`` gives in the modes in which the module was called."""
        with nullcontext() if self.modes is None else self.modes.applied():
            return step()


@dataclass(frozen=True)
class Answer:
    """What a block's beginning is resumed with when its own forward must not run."""

    output: Any


class Chain:
    """The suspended forwards of all micro-batches.

    ``units`` and ``blocks`` name the modules to stop at. ``run`` yields (index, output) of each micro-batch as it finishes, one at a
    time, so that outputs never all live at once. What forwards keep on their modules (``carried``, attributes by module) each has for itself,
    and torch's modes too. With ``seeds``, one for each batch, each draws its own random numbers: ``drew`` says whether one did. Forwards that share
    more than that run ``in_turn``: none begins before the one before it has ended.
    """

    def __init__(
        self, module: nn.Module, batches: Sequence[Batch], units: Iterable[str], blocks: Iterable[str],
        carried: Mapping[str, frozenset[str]] | None = None, *, seeds: Sequence[int] | None = None, in_turn: bool = False,
    ):  # fmt: skip
        self.module, self.batches, self.seeds, self.in_turn = module, batches, seeds, in_turn
        self.drew = False
        self.modules = dict(module.named_modules())
        self._units, self._blocks = tuple(units), tuple(blocks)
        self.originals: dict[str, Callable] = {name: self.modules[name].forward for name in (*self._units, *self._blocks)}
        self._memory = Memory(self.modules, carried or {})
        self.waiting: dict[int, Arrival] = {}

    def original(self, name: str) -> Callable:
        """The module's own forward."""
        return self.originals[name]

    def owner(self, name: str) -> nn.Module:
        """Module by name."""
        return self.modules[name]

    @contextmanager
    def _patched(self) -> Iterator[None]:
        had = {name: self.modules[name].__dict__.get("forward") for name in self.originals}
        try:
            for name in self._units:
                self.modules[name].forward = self._unit_stub(Stop("unit", name))
            for name in self._blocks:
                self.modules[name].forward = self._block_stub(name)
            with uncut(self.module):
                yield
        finally:
            for name, before in had.items():
                if before is None:
                    self.modules[name].__dict__.pop("forward", None)
                else:
                    self.modules[name].forward = before

    def _pause(self, arrival: Arrival) -> Any:
        """Hand ``arrival`` to whoever drives the chain, and go on with the answer as if nobody had run meanwhile."""
        let: Any = greenlet.getcurrent()
        if not hasattr(let, "outside"):
            raise ModelError(
                f"{arrival.stop.name or type(self.module).__name__}: must be called in the thread that calls forward, is called in another, where no "
                "forward can stand still. Let forward call its layers itself."
            )
        mine, held, chance = Modes.now(), self._memory.taken(), self._swap_chance(let.chance)
        arrival.modes = mine
        guard = torch._C._InferenceMode(let.outside.inference) if mine.inference != let.outside.inference else None
        let.outside.set()
        try:
            return let.parent.switch(arrival)
        finally:  # also where the chain is left half way
            let.outside = Modes.now()
            del guard
            mine.set()
            let.chance = self._swap_chance(chance)
            self._memory.put(held)

    def _swap_chance(self, other: Chance | None) -> Chance | None:
        """Go on drawing from ``other``; what was in force. Nothing where nobody draws."""
        if other is None:
            return None
        before = Chance.now()
        other.set()
        return before

    def _unit_stub(self, stop: Stop) -> Callable:
        def forward(*args: Any, **kwargs: Any) -> Any:
            return self._pause(Arrival(stop, args, kwargs))

        return forward

    def _block_stub(self, name: str) -> Callable:
        enter, leave, original = Stop("enter", name), Stop("leave", name), self.originals[name]

        def forward(*args: Any, **kwargs: Any) -> Any:
            answer = self._pause(Arrival(enter, args, kwargs))
            if isinstance(answer, Answer):
                return answer.output
            return self._pause(Arrival(leave, output=original(*args, **kwargs)))

        return forward

    def run(
        self,
        work: Callable[[Stop, list[tuple[int, Arrival]], bool], Iterator[tuple[int, Any]]],
        passes: Callable[[Stop], bool] = lambda stop: False,
        leads: Callable[[int], bool] = lambda index: True,
        arrived: Callable[[int, Arrival], int | None] = lambda index, arrival: None,
    ) -> Iterator[tuple[int, Any]]:
        """Drive all forwards. ``work(stop, arrivals, complete)`` yields (index, value) to resume each arrival with; ``complete`` says that every
        live micro-batch that ``leads`` stands there. Where ``passes(stop)`` a micro-batch does not wait for the others, so that only one has what is
        between its stops. Once one has come to where it waits, ``arrived`` may name one that need not wait any longer, it or another.
        """
        begun, outside = self._memory.taken(), Modes.now()
        lets = [self._forward(index, begun, outside) for index in range(len(self.batches))]
        waiting = self.waiting = {}

        def resume(index: int, value: Any) -> Iterator[tuple[int, Any]]:
            going = [(index, value)]
            while going:
                index, value = going.pop()
                got, value = lets[index].switch(*value), None
                while not lets[index].dead and passes(got.stop):
                    for _, answer in work(got.stop, [(index, got)], True):
                        got = lets[index].switch(answer)
                if lets[index].dead:
                    yield index, got
                    continue
                if self.in_turn:
                    got = self._ended(lets[index], got)
                    lets[index] = self._forward(index, begun, outside)
                waiting[index] = got
                if (other := arrived(index, got)) is not None:
                    freed = waiting.pop(other)
                    going += [(other, (answer,)) for _, answer in work(freed.stop, [(other, freed)], True)]

        try:
            with self._patched():
                for index in range(len(lets)):
                    yield from resume(index, ())
                while waiting:
                    stop = self._next(leads)
                    group = sorted(
                        ((index, arrival) for index, arrival in waiting.items() if arrival.stop == stop), key=lambda pair: pair[0]
                    )
                    complete = all(arrival.stop == stop for index, arrival in waiting.items() if leads(index))
                    for index, _ in group:
                        del waiting[index]
                    answers = work(stop, group, complete)
                    if self.in_turn:
                        next(answers, None)
                        answers = ((index, _AGAIN) for index, _ in group)
                    for index, value in answers:
                        yield from resume(index, () if value is _AGAIN else (value,))
        finally:
            for let in lets:
                if let and not let.dead:
                    let.throw(greenlet.GreenletExit)
            self._memory.put(begun)
            outside.set()

    def _next(self, leads: Callable[[int], bool]) -> Stop:
        """Where most of those that lead stand; where that is no unit, others that stand elsewhere come up first."""
        stops = [(arrival.stop, leads(index)) for index, arrival in self.waiting.items()]
        first = Counter([stop for stop, leading in stops if leading] or [stop for stop, _ in stops]).most_common(1)[0][0]
        behind = Counter(stop for stop, leading in stops if not leading and stop != first).most_common(1)
        return behind[0][0] if behind and first.kind != "unit" else first

    def _forward(self, index: int, begun: list[Any], outside: Modes) -> Any:
        """The forward of one batch, not begun yet."""

        def forward() -> Any:
            let: Any = greenlet.getcurrent()
            let.chance = Chance.now() if self.seeds is not None else None
            self._memory.put(begun)
            if self.seeds is not None:
                seed_all(self.seeds[index])
                seeded = Chance.now()
            try:
                return call(self.module, self.batches[index])
            finally:
                if self.seeds is not None:
                    self.drew |= not Chance.now().same(seeded)
                    self._swap_chance(let.chance)

        let: Any = greenlet.greenlet(forward)
        let.outside, let.gr_context = outside, contextvars.copy_context()
        return let

    def _ended(self, let: Any, got: Arrival) -> Arrival:
        """The arrival for itself, once its forward has run to its end with the module's own answers."""
        mine = got.apart()
        while not let.dead:
            own = {"enter": None, "leave": got.output}
            got = let.switch(own[got.stop.kind] if got.stop.kind in own else got.run(self.originals[got.stop.name]))
        return mine


# Instead of an answer: the forward begins again, and meets what has been made meanwhile.
_AGAIN = object()
