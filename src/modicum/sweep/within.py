"""Inputs of weights that torch's own modules use in their own way: gates of recurrent layers and cells, projections of an attention.

No call stands for their products, and a kernel shows none of its steps. But it need not: what a recurrent layer gives is what the weights of its
states multiply one step later, so its layers run one after the other, each by the same kernel. An attention is told its queries, keys and values;
with an output projection that changes nothing it gives what that multiplies.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import PackedSequence

_KINDS = (nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell, nn.MultiheadAttention)
# How far what is computed again may lie from what the module gave, relative to it: roundings of its dtype, or this.
_NEAR, _ROUNDINGS = 1e-3, 8

# What there is to tell of a weight whose rows meet different inputs.
MIXED = "its rows multiply several inputs, and have the covariance of all of them"


@dataclass(frozen=True)
class Met:
    """What parameters of one module multiply: ``attributes`` all the same ``inputs``, each a tensor [..., columns] laid out as the tokens of the
    argument it is named by.
    """

    attributes: tuple[str, ...]
    inputs: tuple[tuple[str, torch.Tensor], ...]


Call = Callable[[], Any]
Products = Generator[Met, None, torch.Tensor]
"""What the parameters meet, in the order of their use, each computed with those before it as they are then; it returns the module's first output."""


def known(module: nn.Module) -> bool:
    """Whether a module is one of torch's own whose products can be told."""
    return any(type(module).forward is kind.forward for kind in _KINDS)


def given(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a call by name."""
    arguments = inspect.signature(type(module).forward).bind(module, *args, **kwargs).arguments
    return {name: value for name, value in arguments.items() if name != "self"}


def streams(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Arguments whose tokens are rows of what parameters multiply, by name."""
    names = ("query", "key", "value") if isinstance(module, nn.MultiheadAttention) else ("input",)
    arguments = given(module, args, kwargs)
    return {name: arguments[name] for name in names if isinstance(arguments.get(name), torch.Tensor)}


def products(module: Any, forward: Callable, args: tuple, kwargs: dict[str, Any]) -> Products:
    """What the module's parameters meet in one call of its own ``forward``."""
    arguments = given(module, args, kwargs)
    if isinstance(module, nn.MultiheadAttention):
        return _attention(module, lambda: forward(*args, **kwargs), arguments)
    return _recurrent(module, arguments) if isinstance(module, nn.RNNBase) else _cell(module, lambda: forward(*args, **kwargs), arguments)


def stages(module: nn.Module, forward: Callable, args: tuple, kwargs: dict[str, Any], output: Any) -> tuple[tuple[str, ...], ...]:
    """Attributes that meet the same, in the order of their use; nothing where what is computed here is not what the module gave."""
    found, call = [], products(module, forward, args, kwargs)
    while True:
        try:
            found.append(next(call).attributes)
        except StopIteration as end:
            return tuple(found) if _near(end.value, output) else ()


def mixed(met: Met) -> bool:
    """Whether rows of one weight meet inputs of several kinds, of which it has the covariance of all together."""
    return len(met.inputs) > 1


def _near(made: torch.Tensor, output: Any) -> bool:
    first = output
    while isinstance(first, tuple) and first:  # a packed sequence too has its values first
        first = first[0]
    if not isinstance(first, torch.Tensor) or first.shape != made.shape:
        return False
    allowed = max(_NEAR, _ROUNDINGS * torch.finfo(first.dtype).eps)
    return bool((made.float() - first.float()).norm() <= allowed * first.float().norm())


# Attention


def _attention(module: nn.MultiheadAttention, call: Call, arguments: dict[str, Any]) -> Products:
    names = ["query", "key", "value"]
    if module.in_proj_weight is not None:
        told = {id(arguments[name]): (name, arguments[name]) for name in reversed(names)}
        yield Met(("in_proj_weight",), tuple(reversed(told.values())))
    else:
        together: dict[int, list[str]] = {}
        for name in names:
            together.setdefault(id(arguments[name]), []).append(name)
        for same in together.values():
            yield Met(tuple(f"{name[0]}_proj_weight" for name in same), ((same[0], arguments[same[0]]),))
    with _passed_on(module.out_proj):
        heads = call()[0]
    yield Met(("out_proj.weight",), (("query", heads),))
    return F.linear(heads, module.out_proj.weight, module.out_proj.bias)


@contextmanager
def _passed_on(layer: nn.Linear) -> Iterator[None]:
    """A linear layer that gives what it gets."""
    before, weight = dict(layer._parameters), layer.weight
    one = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
    layer._parameters.update(weight=nn.Parameter(one, requires_grad=False), bias=None)
    try:
        yield
    finally:
        layer._parameters.update(before)


# Recurrent layers


def _cell(module: nn.RNNCellBase, call: Call, arguments: dict[str, Any]) -> Products:
    inputs, states = arguments["input"], arguments.get("hx")
    hidden = states[0] if isinstance(states, tuple) else states
    yield Met(("weight_ih",), (("input", inputs),))
    yield Met(("weight_hh",), (("input", inputs.new_zeros(*inputs.shape[:-1], module.hidden_size) if hidden is None else hidden),))
    output = call()
    return output[0] if isinstance(output, tuple) else output


def _recurrent(module: nn.RNNBase, arguments: dict[str, Any]) -> Products:
    steps = _Steps.of(module, arguments["input"])
    states, data = steps.states(arguments.get("hx")), steps.data
    for layer in range(module.num_layers):
        ways = [(f"l{layer}", 0), *([(f"l{layer}_reverse", 1)] if module.bidirectional else [])]
        yield Met(tuple(f"weight_ih_{name}" for name, _ in ways), (("input", steps.laid(data)),))
        begun = tuple(state[layer * len(ways) : (layer + 1) * len(ways)] for state in states)
        # The kernel runs again after each kind of weight: they may have been exchanged, and what comes next meets what that gives.
        for (name, _), before in zip(ways, steps.befores(_layer(module, data, steps.sizes, begun, ways), begun[0], ways)):
            yield Met((f"weight_hh_{name}",), (("input", steps.laid(before)),))
        if module.proj_size:
            for (name, way), before in zip(ways, steps.befores(_layer(module, data, steps.sizes, begun, ways), begun[0], ways)):
                cells = _unprojected(_Gates.of(module, name), data, before, begun[1][way], steps.order(way))
                yield Met((f"weight_hr_{name}",), (("input", steps.laid(cells)),))
        data = _layer(module, data, steps.sizes, begun, ways)
    return steps.laid(data)


def _layer(
    module: nn.RNNBase, data: torch.Tensor, sizes: torch.Tensor, begun: tuple[torch.Tensor, ...], ways: list[tuple[str, int]]
) -> torch.Tensor:  # fmt: skip
    """What one layer gives at every step (values, ways · width), by the kernel that the module calls."""
    kernel: Any = {"LSTM": torch.lstm, "GRU": torch.gru, "RNN_TANH": torch.rnn_tanh, "RNN_RELU": torch.rnn_relu}[module.mode]
    parts = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if module.bias else []), *(["weight_hr"] if module.proj_size else [])]
    weights = [getattr(module, f"{part}_{name}") for name, _ in ways for part in parts]
    hidden = begun if module.mode == "LSTM" else begun[0]
    return kernel(data, sizes, hidden, weights, module.bias, 1, 0.0, False, module.bidirectional)[0]


@dataclass(frozen=True)
class _Steps:
    """The tokens of a recurrent layer's input, step after step: ``data`` (values, columns) and how many sequences have each step, ``sizes``."""

    module: nn.RNNBase
    data: torch.Tensor
    sizes: torch.Tensor
    sequence: PackedSequence | None
    alone: bool

    @classmethod
    def of(cls, module: nn.RNNBase, inputs: torch.Tensor | PackedSequence) -> _Steps:
        if isinstance(inputs, PackedSequence):
            return cls(module, inputs.data, inputs.batch_sizes, inputs, False)
        alone = inputs.ndim == 2
        first = inputs.unsqueeze(1) if alone else inputs.transpose(0, 1) if module.batch_first else inputs
        return cls(module, first.reshape(-1, inputs.shape[-1]), torch.full((len(first),), first.shape[1]), None, alone)

    def states(self, given: Any) -> tuple[torch.Tensor, ...]:
        """The states before the first step (layers · ways, sequences, width), zeros where none are given."""
        module, many = self.module, int(self.sizes[0])
        if given is None:
            widths = [module.proj_size or module.hidden_size, *([module.hidden_size] if module.mode == "LSTM" else [])]
            layers = module.num_layers * (2 if module.bidirectional else 1)
            return tuple(self.data.new_zeros(layers, many, width) for width in widths)
        held = given if isinstance(given, tuple) else (given,)
        held = tuple(state.unsqueeze(1) for state in held) if self.alone else held
        order = None if self.sequence is None else self.sequence.sorted_indices
        return held if order is None else tuple(state.index_select(1, order) for state in held)

    def laid(self, values: torch.Tensor) -> torch.Tensor:
        """Values at every step (values, width), laid out as the module's input is."""
        if self.sequence is not None:
            return values
        steps = values.view(len(self.sizes), -1, values.shape[-1])
        return steps[:, 0] if self.alone else steps.transpose(0, 1) if self.module.batch_first else steps

    def order(self, way: int) -> list[tuple[slice, slice, int]]:
        """The steps as they are taken, backward if ``way``: which values, those of the step before them, and how many sequences had one."""
        ends = self.sizes.cumsum(0).tolist()
        steps = [slice(end - size, end) for end, size in zip(ends, self.sizes.tolist())][:: -1 if way else 1]
        many = [0, *(min(here.stop - here.start, last.stop - last.start) for last, here in pairwise(steps))]
        return [(here, slice(last.start, last.start + count), count) for here, last, count in zip(steps, [steps[0], *steps], many)]

    def befores(self, output: torch.Tensor, first: torch.Tensor, ways: list[tuple[str, int]]) -> list[torch.Tensor]:
        """Of each way the states that its steps begin with (values, width), from those they end with and the ``first`` of every sequence."""
        return [_shifted(ended, first[way], self.order(way)) for ended, (_, way) in zip(output.chunk(len(ways), 1), ways)]


def _shifted(ended: torch.Tensor, first: torch.Tensor, order: list[tuple[slice, slice, int]]) -> torch.Tensor:
    """What each step begins with, from what the step before it ended with."""
    found = torch.empty_like(ended)
    for here, last, many in order:
        found[here] = torch.cat([ended[last], first[many : here.stop - here.start]])
    return found


@dataclass(frozen=True)
class _Gates:
    """The weights of one layer's gates in one direction."""

    inputs: torch.Tensor
    states: torch.Tensor
    input_bias: torch.Tensor | None
    state_bias: torch.Tensor | None

    @classmethod
    def of(cls, module: nn.RNNBase, name: str) -> _Gates:
        return cls(*(getattr(module, f"{part}_{name}", None) for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")))  # type: ignore[arg-type]


def _unprojected(
    gates: _Gates, data: torch.Tensor, before: torch.Tensor, first: torch.Tensor, order: list[tuple[slice, slice, int]]
) -> torch.Tensor:  # fmt: skip
    """What the projection of an LSTM's states multiplies at every step (values, hidden): its states are known, so all gates are."""
    moved = F.linear(data, gates.inputs, gates.input_bias) + F.linear(before, gates.states, gates.state_bias)
    enter, keep, new, leave = moved.chunk(4, 1)
    enter, keep, new, leave = enter.sigmoid(), keep.sigmoid(), new.tanh(), leave.sigmoid()
    cells = torch.empty_like(enter)
    for here, last, many in order:
        cells[here] = keep[here] * torch.cat([cells[last], first[many : here.stop - here.start]]) + enter[here] * new[here]
    return leave * cells.tanh()
