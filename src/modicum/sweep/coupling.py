"""Coupled cuts found by differentiation: which rows of earlier weights feed which columns of a later one, whatever the layout.

A block is run once with gradients on a short input. For a consumer (a down projection, an attention's output projection) the gradient of
some of its input columns shows which output channels of earlier units reach them. Channels that reach one column each make a
feed-forward cut; channels that stay within one head make a cut of heads, and heads that share a channel (grouped keys and values)
fall together. Fused and interleaved projections need no special case.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from modicum.core.unit import Axis, Site
from modicum.data.splits import Batch
from modicum.models.model import Model
from modicum.sweep.rehearsal import module_units
from modicum.sweep.script import Script
from modicum.sweep.suspend import Arrival, Chain, Stop

# Attributes under which attention modules keep the width of one head.
_HEAD_WIDTH = ("head_dim", "attention_head_size", "key_value_proj_dim", "d_kv", "head_size")
_KINDS = ("linear", "conv1d")
# Tokens of a text that are enough to see what feeds what.
_TOKENS = 16


def coupled_cuts(model: Model, script: Script, batch: Batch) -> list[Site]:
    """Every coupled cut of the model's blocks, in call order.

    A site's ``axes`` name, for each unit, the rows (producers) or columns (the consumer, last) that vanish with each group.
    """
    return _Search(model, script, shortened(script.example(batch), _TOKENS)).run()


def adds_output(model: Model, script: Script, batch: Batch, block: str, module: str) -> bool:
    """Whether a block's output is the output of ``module`` plus something: then a linear map after it can be folded into it."""
    search = _Search(model, script, shortened(script.example(batch), _TOKENS))
    search.wanted = (block, module)
    search.run()
    return search.adds


def shortened(row: Batch, tokens: int) -> Batch:
    """The first ``tokens`` tokens where all tensors are tokens by rows; otherwise what came."""
    if not isinstance(row, dict) or "input_ids" not in row or row["input_ids"].ndim != 2:
        return row
    if any(value.shape != row["input_ids"].shape or value.is_floating_point() for value in row.values()):
        return row
    return {name: value[:, :tokens] for name, value in row.items()}


class _Search:
    wanted: tuple[str, str] | None = None
    adds = False

    def __init__(self, model: Model, script: Script, batch: Batch):
        self.model, self.script = model, script
        self.units = module_units(model)
        self.modules = dict(model.module.named_modules())
        self.chain = Chain(model.module, [batch], [], model.blocks, script.carried, seeds=script.seeds([batch]))
        self.found: list[Site] = []

    def run(self) -> list[Site]:
        with torch.no_grad():
            self.model.weights.load(self.model.trunk)
            for _ in self.chain.run(self._work):
                pass
        return self.found

    def _work(self, stop: Stop, arrivals: list[tuple[int, Arrival]], complete: bool) -> Iterator[tuple[int, Any]]:
        index, arrival = arrivals[0]
        parameters = self.model.blocks[stop.name].parameters
        if stop.kind == "enter":
            self.model.weights.load(parameters)
            if not any(unit.module.startswith(f"{stop.name}.") for unit in self.model.units.values() if unit.name in self.script.reused):
                self._block(stop.name, arrival)
            yield index, None
        else:
            self.model.weights.release(parameters)
            yield index, arrival.output

    def _block(self, block: str, arrival: Arrival) -> None:
        if self.wanted is not None and self.wanted[0] != block:
            return
        with torch.enable_grad():
            record = _Record(self, block, arrival)
            if self.wanted is not None:
                self.adds = record.adds(self.wanted[1])
                return
            for name in record.order:
                if self.units[name].kind in _KINDS and len(record.inputs[name].shape) >= 2 and record.inputs[name].numel():
                    self._consumer(record, name)

    def _consumer(self, record: _Record, name: str) -> None:
        earlier = record.order[: record.order.index(name)]
        producers = [other for other in earlier if self.units[other].kind in _KINDS and record.outputs[other].requires_grad]
        if not producers or not record.inputs[name].requires_grad:
            return
        columns = record.inputs[name].shape[-1]
        width = next((width for other in (name, *producers) if (width := self._head_width(other, columns))), 0)
        meeting = [other for other, mask in zip(producers, record.reached(name, None, producers)) if bool(mask.any())]
        if not meeting:
            return
        reach = _elementwise(record, name, meeting)
        groups: list[tuple[int, ...]] = [(column,) for column in range(columns)]
        if width and len(reach or {}) < len(meeting):
            heads = [tuple(range(start, start + width)) for start in range(0, columns, width)]
            by_head = _by_group(record, name, meeting, heads)
            # Values alone go column by column; queries and keys, which reach a whole head, say that heads are the unit.
            if by_head is not None and len(by_head) > len(reach or {}):
                reach, groups = by_head, heads
        if reach is None or not record.only_through(name, list(reach)):
            return
        self.found.append(self._site(name, groups, reach))

    def _head_width(self, name: str, columns: int) -> int:
        module = name
        while module:
            module = module.rpartition(".")[0]
            for attribute in _HEAD_WIDTH:
                width = getattr(self.modules[module], attribute, None)
                if isinstance(width, int) and 0 < width < columns and columns % width == 0:
                    return width
        return 0

    def _site(self, name: str, groups: list[tuple[int, ...]], reach: dict[str, list[set[int]]]) -> Site:
        """Join groups that share a channel, and list each unit's rows by joint group."""
        leader = list(range(len(groups)))

        def find(group: int) -> int:
            while leader[group] != group:
                group = leader[group]
            return group

        for channels in reach.values():
            for touched in channels:
                first, *others = sorted(touched)
                for other in others:
                    leader[find(other)] = find(first)
        joint = sorted({find(group) for group in range(len(groups))})
        place = {root: index for index, root in enumerate(joint)}
        axes = []
        for producer, channels in reach.items():
            rows: list[list[int]] = [[] for _ in joint]
            for row, touched in enumerate(channels):
                rows[place[find(min(touched))]].append(row)
            axes.append(Axis(self.units[producer].name, "rows", tuple(map(tuple, rows))))
        columns: list[list[int]] = [[] for _ in joint]
        for group, members in enumerate(groups):
            columns[place[find(group)]] += members
        axes.append(Axis(self.units[name].name, "columns", tuple(map(tuple, columns))))
        units = tuple(self.units[other] for other in (*reach, name))
        kind = "ffn" if len(joint) == sum(map(len, columns)) else "heads"
        return Site(f"{name.rpartition('.')[0]}:{kind}", "cut", units, tuple(axes))


class _Record:
    """One block run with gradients: every unit's input and output, in call order."""

    def __init__(self, search: _Search, block: str, arrival: Arrival):
        self.search, self.block, self.arrival = search, block, arrival
        self.order: list[str] = []
        self.inputs: dict[str, torch.Tensor] = {}
        self.outputs: dict[str, torch.Tensor] = {}
        self.result = self._run(None)

    def _run(self, cut_at: str | None) -> Any:
        with self._patched(cut_at):
            arguments = tuple(_leaf(value) for value in self.arrival.args)
            return self.search.chain.original(self.block)(*arguments, **(self.arrival.kwargs or {}))

    @contextmanager
    def _patched(self, cut_at: str | None) -> Iterator[None]:
        names = [name for name in self.search.units if name.startswith(f"{self.block}.")]
        modules = self.search.modules
        before = {name: modules[name].__dict__.get("forward") for name in names}
        for name in names:
            modules[name].forward = self._stub(name, modules[name].forward, cut_at)
        try:
            yield
        finally:
            for name, forward in before.items():
                if forward is None:
                    modules[name].__dict__.pop("forward", None)
                else:
                    modules[name].forward = forward

    def _stub(self, name: str, original: Callable, cut_at: str | None) -> Callable:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if cut_at == name:
                args, kwargs = tree_map_only(torch.Tensor, torch.Tensor.detach, (args, kwargs))
            inputs = next((value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)), None)
            output = original(*args, **kwargs)
            if inputs is not None and isinstance(output, torch.Tensor) and output.is_floating_point():
                # What a channel feeds is a matter of structure, not of values: positive ones pass every rectifier. Cutting the graph here
                # leaves each consumer the units that feed it directly.
                output = (output.detach().abs() + 0.1).requires_grad_().clone()
                if name not in self.inputs or cut_at is not None:
                    self.order += [name] if name not in self.inputs else []
                    self.inputs[name], self.outputs[name] = inputs, output
            return output

        return forward

    def reached(self, name: str, columns: torch.Tensor | None, producers: list[str]) -> list[torch.Tensor]:
        """For each producer, which output channels (boolean) the given input columns of ``name`` (None: all) depend on."""
        value = self.inputs[name]
        value = (value if columns is None else value.index_select(-1, columns.to(value.device))).double()
        weights = torch.linspace(0.5, 1.5, value.numel(), dtype=torch.float64, device=value.device).view(value.shape)
        gradients = torch.autograd.grad((value * weights).sum(), [self.outputs[p] for p in producers], retain_graph=True, allow_unused=True)
        return [
            torch.zeros(self.outputs[p].shape[-1], dtype=torch.bool)
            if g is None or not g.numel()
            else (g.reshape(-1, g.shape[-1]).abs().amax(0) > 0).cpu()
            for p, g in zip(producers, gradients)
        ]

    def adds(self, name: str) -> bool:
        """Whether the gradient from the block's output to the unit's output is the identity."""
        result = self.result[0] if isinstance(self.result, tuple) else self.result
        output = self.outputs.get(name)
        if output is None or output.shape != result.shape or not result.requires_grad:
            return False
        weights = torch.linspace(0.5, 1.5, result.numel(), dtype=result.dtype, device=result.device).view(result.shape)
        gradient = torch.autograd.grad((result * weights).sum(), output, allow_unused=True)[0]
        return gradient is not None and bool(torch.equal(gradient, weights))

    def only_through(self, name: str, producers: list[str]) -> bool:
        """Whether the block's output depends on the producers through ``name`` alone."""
        kept = dict(self.inputs), dict(self.outputs)
        result = self._run(name)
        first = result[0] if isinstance(result, tuple) else result
        others = [value for other, value in self.inputs.items() if other not in producers and other != name and value.requires_grad]
        wanted = [self.outputs[p] for p in producers]
        total = sum(value.double().square().sum() for value in [first, *others] if isinstance(value, torch.Tensor) and value.requires_grad)
        gradients = torch.autograd.grad(total, wanted, allow_unused=True) if isinstance(total, torch.Tensor) else [None]
        self.inputs, self.outputs = kept
        return all(g is None or not bool((g != 0).any()) for g in gradients)


def _leaf(value: Any) -> Any:
    return value.detach().requires_grad_().clone() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def _elementwise(record: _Record, name: str, producers: list[str]) -> dict[str, list[set[int]]] | None:
    """Per producer the one column each channel reaches, by binary codes of the columns; None where a channel reaches none or several."""
    columns = record.inputs[name].shape[-1]
    bits, places = max(1, math.ceil(math.log2(columns))), torch.arange(columns)
    codes = {p: torch.zeros(record.outputs[p].shape[-1], dtype=torch.long) for p in producers}
    clean = {p: torch.ones(record.outputs[p].shape[-1], dtype=torch.bool) for p in producers}
    for bit in range(bits):
        sides = [places[places >> bit & 1 == side] for side in (0, 1)]
        touched = [
            record.reached(name, side, producers) if len(side) else [torch.zeros_like(clean[p]) for p in producers] for side in sides
        ]
        for place, p in enumerate(producers):
            clean[p] &= touched[0][place] ^ touched[1][place]
            codes[p] |= touched[1][place].long() << bit
        if not any(bool(mask.all()) for mask in clean.values()):
            return None  # everything meets, as behind a norm
    found = {p: [{code} for code in codes[p].tolist()] for p in producers if bool(clean[p].all())}
    covered = {code for channels in found.values() for touched in channels for code in touched}
    return found if covered == set(range(columns)) else None


def _by_group(record: _Record, name: str, producers: list[str], groups: list[tuple[int, ...]]) -> dict[str, list[set[int]]] | None:
    """Per producer the groups of columns each channel reaches; only producers none of whose channels reaches every group count."""
    touched: dict[str, list[set[int]]] = {p: [set() for _ in range(record.outputs[p].shape[-1])] for p in producers}
    for index, group in enumerate(groups):
        for p, mask in zip(producers, record.reached(name, torch.tensor(group), producers)):
            for channel in mask.nonzero()[:, 0].tolist():
                touched[p][channel].add(index)
    found = {p: channels for p, channels in touched.items() if all(channels) and all(len(c) < len(groups) for c in channels)}
    covered = {group for channels in found.values() for c in channels for group in c}
    return found if found and covered == set(range(len(groups))) else None


def kept_rows(axis: Axis, kept: list[int], size: int) -> torch.Tensor:
    """Boolean (size,) mask of the rows or columns that remain when the groups ``kept`` do; those in no group always remain."""
    mask = torch.ones(size, dtype=torch.bool)
    gone = set(range(len(axis.groups))) - set(kept)
    mask[[place for index in gone for place in axis.groups[index]]] = False  # at once: there are tens of thousands
    return mask
