"""Multiply-adds of one forward pass: counted at every product of tensors while it runs, and whose they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modicum.core.unit import Site

# Two matrices, or stacks of them, by the places of their arguments.
_PRODUCTS = {
    "mm": (0, 1),
    "bmm": (0, 1),
    "mv": (0, 1),
    "addmm": (1, 2),
    "baddbmm": (1, 2),
    "addbmm": (1, 2),
    "addmv": (1, 2),
    "_grouped_mm": (0, 1),
}
_DOTS = ("dot", "vdot", "inner")
# bitsandbytes' products: inputs, a packed weight, and its shape.
_PACKED = ("gemm_4bit", "gemv_4bit")
_CONVOLUTIONS = ("convolution", "_convolution", "convolution_overrideable", "mkldnn_convolution")
_ATTENTION = "_scaled_dot_product"
_RECURRENT = "mkldnn_rnn_layer"

Owned = tuple[str, str, int]
"""A unit, or nobody's (empty); the block; multiply-adds."""


@dataclass(frozen=True)
class Work:
    """Multiply-adds of one pass, in the order in which they were done; looking entries of a table up takes none, nor does adding or scaling."""

    order: tuple[Owned, ...] = ()

    @cached_property
    def whole(self) -> int:
        """All of them."""
        return sum(count for *_, count in self.order)

    @cached_property
    def units(self) -> dict[str, int]:
        """Those of each unit's weight."""
        found: dict[str, int] = {}
        for unit, _, count in self.order:
            if unit:
                found[unit] = found.get(unit, 0) + count
        return found

    def block(self, name: str) -> int:
        """Those in a block."""
        return sum(count for _, block, count in self.order if block == name)

    def between(self, cuts: Iterable[Site]) -> dict[str, int]:
        """Products of no weight that lie between the units of a coupled cut (scores and mixtures of an attention), by the cut's consumer.

        Of several cuts around a product it is the innermost one's.
        """
        places: dict[str, list[int]] = {}
        for place, (unit, *_) in enumerate(self.order):
            places.setdefault(unit, []).append(place)
        spans = []
        for site in cuts:
            made, taken = [place for unit in site.units[:-1] for place in places.get(unit.name, ())], places.get(site.units[-1].name, ())
            if made and len(taken) == 1:  # called more than once, nobody knows which products go with which call
                spans.append((min(made), taken[0], site.axes[-1].unit))
        found: dict[str, int] = {}
        for place, (unit, _, count) in enumerate(self.order):
            around = [(stop - start, consumer) for start, stop, consumer in spans if not unit and start < place < stop]
            if around:
                found[min(around)[1]] = found.get(min(around)[1], 0) + count
        return found


class Counting(TorchDispatchMode):
    """Notes the multiply-adds of every product while it is open.

    A product is the unit's that is being called (``of``), else that of the weight among its arguments, which ``held()`` names by its memory,
    else nobody's.
    """

    def __init__(self, held: Callable[[], Mapping[int, str]] = dict):
        super().__init__()
        self.held, self.order = held, list[Owned]()
        self.owner = self.block = ""
        self.paused = False

    @property
    def work(self) -> Work:
        """What was counted so far."""
        return Work(tuple(self.order))

    @contextmanager
    def of(self, owner: str) -> Iterator[None]:
        """Inside, products are of this unit."""
        before, self.owner = self.owner, owner
        try:
            yield
        finally:
            self.owner = before

    def share(self, since: int, stack: str, units: Mapping[str, int]) -> None:
        """What was counted as a stack's ``since`` is of its units, by their sizes: experts are chosen anew for every token. Without any, nobody's."""
        found, total = sum(count for unit, _, count in self.order[since:] if unit == stack), sum(units.values())
        self.order[since:] = [each for each in self.order[since:] if each[0] != stack]
        ends = [found * end // total for end in accumulate(units.values(), initial=0)] if total else [0, found]
        self.order += [(name, self.block, stop - start) for name, start, stop in zip(units or [""], ends, ends[1:])]

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside, nothing is counted: it is no part of the pass."""
        before, self.paused = self.paused, True
        try:
            yield
        finally:
            self.paused = before

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        made = function(*args, **(kwargs or {}))
        if not self.paused:
            for given, count in products(function, args, made):
                self._note(given, count)
        return made

    def _note(self, given: Any, count: int) -> None:
        self.order.append((self.owner or self._held(given), self.block, count))

    def _held(self, given: Any) -> str:
        held = self.held()
        addresses = (
            (tensor.untyped_storage().data_ptr() for tensor in tree_leaves(given) if isinstance(tensor, torch.Tensor)) if held else ()
        )
        return next((held[address] for address in addresses if address in held), "")


def products(function: Any, args: tuple, made: Any) -> Iterator[tuple[Any, int]]:
    """Multiply-adds of one of torch's operations, with the arguments that are multiplied; nothing where it multiplies no matrices.

    Products of an attention count in full, also where a mask makes some of them zero: kernels differ in what they leave out.
    """
    name = getattr(function, "__name__", "").partition(".")[0]
    if name in _PRODUCTS:
        left, right = (args[place] for place in _PRODUCTS[name])
        yield (left, right), left.numel() * (right.shape[-1] if right.ndim > 1 else 1)
    elif name in _DOTS:
        yield args[:2], args[0].numel()
    elif name == "linear":
        yield args[:2], args[0].numel() * len(args[1])
    elif name in _PACKED:
        yield args[:2], args[0].numel() * args[2][0]
    elif name in _CONVOLUTIONS:
        transposed = name != "mkldnn_convolution" and bool(args[6])
        yield args[:2], _convolved(args[0], args[1], made, transposed)
    elif name.startswith(_ATTENTION):
        queries, keys, values = args[:3]
        yield (), math.prod(queries.shape[:-1]) * keys.shape[-2] * (queries.shape[-1] + values.shape[-1])
    elif name == _RECURRENT:
        steps = args[0].numel() // max(1, args[0].shape[-1])
        yield from ((weight, steps * weight.numel()) for weight in args[1:3])


def _convolved(inputs: torch.Tensor, weight: torch.Tensor, made: torch.Tensor, transposed: bool) -> int:
    """Every position of the outputs meets a filter once; of a transposed convolution every position of the inputs."""
    return (inputs if transposed else made).numel() * (weight.numel() // len(weight))


@torch.no_grad()
def counted(run: Callable[[], Any]) -> int:
    """Multiply-adds of what ``run`` does."""
    with Counting() as counting:
        run()
    return counting.work.whole
