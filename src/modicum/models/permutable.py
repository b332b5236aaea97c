"""What may be renumbered in a network without changing what it computes, found by differentiation."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from modicum.core.errors import ModelError

_PROBES = 3  # random halves of the groups that must be reached from their own rows alone


@dataclass(frozen=True)
class Member:
    """One axis of a tensor that moves with a group: ``index`` (groups, entries of each) says which entries each number has.

    ``tied`` is the first name of the tensor, which is its own where it has one.
    """

    name: str
    axis: int
    index: torch.Tensor
    tied: str


@dataclass(frozen=True)
class Numbering:
    """So many things in a row (channels, heads) that may be put in any order, if all ``members`` are put in it together."""

    count: int
    members: tuple[Member, ...]


@dataclass
class _Node:
    """The channels that go into a module, or come out of it, or are a parameter that stands alone."""

    axes: tuple[tuple[str, int], ...]
    size: int
    fixed: bool = False


@dataclass
class _Seen:
    producers: list[tuple[str, torch.Tensor, int]] = field(default_factory=list)
    consumers: list[tuple[str, torch.Tensor, int]] = field(default_factory=list)


def numberings(module: nn.Module, *args: Any, **kwargs: Any) -> list[Numbering]:
    """Every set of axes of a module's tensors that may be permuted together, as one call on an example shows.

    Each layer's output is cut off, so that the gradient of the input of the next ones says what feeds what: one channel each (a feed-forward layer, a
    convolution, the residual stream with its norms), or runs of channels (the heads of an attention, with the keys and values that they share). What
    feeds a layer in no such way, or leaves the module, is never moved. What was found is tried: all orders are drawn at random, and the output
    must be the same. Raises ``ModelError`` where it is not.
    """
    module = copy.deepcopy(module).eval()
    nodes, seen, outputs = _run(module, args, kwargs)
    alone = _alone(module, nodes)
    links = _Links(nodes, _first_names(module))
    for name, value, _ in [*seen.consumers, *(("", value, -1) for value in outputs)]:
        _linked(links, name, value, next((dim for other, _, dim in seen.consumers if other == name), -1), seen, alone, args, kwargs)
    found = links.numberings()
    _require_equal(module, found, args, kwargs)
    return found


def permuted(value: torch.Tensor, members: Sequence[tuple[Member, torch.Tensor]]) -> torch.Tensor:
    """A tensor with the entries of each axis in another order: ``order`` (count,) says which of the old numbers each new one is."""
    for member, order in members:
        index = torch.arange(value.shape[member.axis])
        index[member.index.reshape(-1)] = member.index[order].reshape(-1)
        value = value.index_select(member.axis, index)
    return value


def _layer(module: nn.Module, name: str) -> tuple[tuple[_Node | None, int], tuple[_Node | None, int]] | None:
    """Where a module's channels go in and come out, and along which axis of what it is given; None where nothing is known of it."""
    own = {key: value for key, value in itertools.chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False))
           if value.is_floating_point()}  # fmt: skip
    full = lambda key: f"{name}.{key}" if name else key
    weight, bias = own.get("weight"), [(full("bias"), 0)] if own.get("bias") is not None else []
    if isinstance(module, nn.Linear):
        return (_Node(((full("weight"), 1),), module.in_features), -1), (_Node(((full("weight"), 0), *bias), module.out_features), -1)
    if type(module).__name__ == "Conv1D" and weight is not None and weight.ndim == 2:
        return (_Node(((full("weight"), 0),), weight.shape[0]), -1), (_Node(((full("weight"), 1), *bias), weight.shape[1]), -1)
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.groups == 1:
        return (_Node(((full("weight"), 1),), module.in_channels), 1), (_Node(((full("weight"), 0), *bias), module.out_channels), 1)
    if isinstance(module, nn.Embedding):
        return (None, -1), (_Node(((full("weight"), 1),), module.embedding_dim), -1)
    if own and not list(module.children()) and len({value.shape for value in own.values()}) == 1 and next(iter(own.values())).ndim == 1:
        both = _Node(tuple((full(key), 0) for key in own), len(next(iter(own.values()))))
        channel = 1 if isinstance(module, nn.modules.batchnorm._BatchNorm) else -1
        return (both, channel), (both, channel)
    return None


def _run(module: nn.Module, args: Any, kwargs: Any) -> tuple[dict[str, tuple[_Node | None, _Node | None]], _Seen, list[torch.Tensor]]:
    nodes: dict[str, tuple[_Node | None, _Node | None]] = {}
    seen = _Seen()
    with contextlib.ExitStack() as hooks:
        for name, part in module.named_modules():
            known = _layer(part, name)
            if known is None:
                continue
            (inside, before), (outside, after) = known
            nodes[name] = (inside, outside)

            def hook(part: nn.Module, given: Any, made: Any, name: str = name, before: int = before, after: int = after) -> Any:
                if not isinstance(made, torch.Tensor) or not made.is_floating_point():
                    return made
                if given and isinstance(given[0], torch.Tensor) and given[0].is_floating_point():
                    seen.consumers.append((name, given[0], before))
                leaf = made.detach().requires_grad_()
                seen.producers.append((name, leaf, after))
                return leaf.clone()

            hooks.callback(part.register_forward_hook(hook).remove)
        with torch.enable_grad():
            for each in tree_leaves((args, kwargs)):
                if isinstance(each, torch.Tensor) and each.is_floating_point():
                    each.requires_grad_()
            made = module(*args, **kwargs)
    outputs = [each for each in tree_leaves(made if not hasattr(made, "to_tuple") else made.to_tuple()) if isinstance(each, torch.Tensor)]
    return nodes, seen, [each for each in outputs if each.requires_grad]


def _alone(module: nn.Module, nodes: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Parameters that no known layer has."""
    return {name: value for name, value in module.named_parameters() if name.rpartition(".")[0] not in nodes}


def _first_names(module: nn.Module) -> dict[str, str]:
    """Of each tensor by each of its names the first one."""
    first: dict[int, str] = {}
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return {name: first.setdefault(id(value), name) for name, value in tensors}


class _Links:
    """Channels that move together, joined as they are met."""

    def __init__(self, nodes: Mapping[str, tuple[_Node | None, _Node | None]], first: Mapping[str, str]):
        self.nodes, self.first = nodes, first
        self.leader: dict[int, int] = {}
        self.met: dict[int, tuple[_Node, torch.Tensor]] = {}
        self.fixed: set[int] = set()
        self.lone: dict[str, _Node] = {}

    def find(self, key: int) -> int:
        while self.leader.setdefault(key, key) != key:
            key = self.leader[key]
        return key

    def fix(self, node: _Node | None) -> None:
        if node is not None:
            self.fixed.add(id(node))
            self.leader.setdefault(id(node), id(node))

    def join(self, one: _Node, index: torch.Tensor, other: _Node, theirs: torch.Tensor) -> None:
        """Both move together, each by its own groups; where one was met with other groups, none may move."""
        for node, mine in ((one, index), (other, theirs)):
            if id(node) in self.met and not torch.equal(self.met[id(node)][1], mine):
                self.fix(node)
            self.met.setdefault(id(node), (node, mine))
        self.leader[self.find(id(one))] = self.find(id(other))

    def numberings(self) -> list[Numbering]:
        sets: dict[int, list[tuple[_Node, torch.Tensor]]] = {}
        for key, (node, index) in self.met.items():
            sets.setdefault(self.find(key), []).append((node, index))
        stuck = {self.find(key) for key in self.fixed}
        places: dict[tuple[str, int], int] = {}
        for root, members in sets.items():
            for node, _ in members:
                for name, axis in node.axes:  # a tensor that is tied stands in two places: both must be one set
                    place = (self.first[name], axis)
                    if places.setdefault(place, root) != root:
                        stuck |= {root, places[place]}
        found = []
        for root, members in sets.items():
            if root in stuck:
                continue
            axes = {(name, axis): index for node, index in members for name, axis in node.axes}
            found.append(
                Numbering(len(members[0][1]), tuple(Member(name, axis, index, self.first[name]) for (name, axis), index in axes.items()))
            )
        return [each for each in found if each.count > 1]


def _linked(
    links: _Links, name: str, value: torch.Tensor, dim: int, seen: _Seen, alone: Mapping[str, torch.Tensor], args: Any, kwargs: Any
) -> None:  # fmt: skip
    """Join what feeds one layer with it, or fix it where it does so in no way that is known."""
    if not value.requires_grad:
        return
    node = links.nodes[name][0] if name else None
    given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor) and each.requires_grad]
    sources: list[tuple[_Node | None, torch.Tensor, int]] = [(links.nodes[other][1], leaf, axis) for other, leaf, axis in seen.producers]
    sources += [(links.lone.setdefault(key, _Node(((key, leaf.ndim - 1),), leaf.shape[-1])), leaf, -1) for key, leaf in alone.items()]
    sources += [(None, leaf, -1) for leaf in given]
    draw = torch.Generator().manual_seed(0)
    gradients = _gradients(value, torch.rand(value.shape, generator=draw, dtype=value.dtype), [leaf for _, leaf, _ in sources])
    reaching = [source for source, gradient in zip(sources, gradients) if gradient is not None and bool(gradient.any())]
    if node is None or any(source is None for source, _, _ in reaching) or value.shape[dim] != node.size:
        for source, _, _ in reaching:
            links.fix(source)
        links.fix(node)
        return
    nodes = [(source, leaf, axis) for source, leaf, axis in reaching if source is not None]
    most = math.gcd(node.size, *(source.size for source, _, _ in nodes))
    for count in sorted((count for count in range(2, most + 1) if most % count == 0), reverse=True):
        layouts = [_layout(value, dim, node.size, count, source.size, leaf, axis) for source, leaf, axis in nodes]
        if all(layout is not None for layout in layouts):
            mine = torch.arange(node.size).reshape(count, -1)
            for (source, _, _), layout in zip(nodes, layouts):
                assert layout is not None
                links.join(source, layout, node, mine)
            return
    for source, _, _ in nodes:
        links.fix(source)
    links.fix(node)


def _layout(value: torch.Tensor, dim: int, columns: int, count: int, rows: int, leaf: torch.Tensor, axis: int) -> torch.Tensor | None:
    """Which rows (count, rows of each) feed which of ``count`` runs of columns: runs too, or one from each third, or None where others do."""
    choices = [torch.arange(rows).reshape(count, -1)]
    if rows == 3 * columns:
        choices.append(torch.arange(rows).reshape(3, count, -1).transpose(0, 1).reshape(count, -1))
    draw = torch.Generator().manual_seed(count)
    for _ in range(_PROBES):
        half = torch.randperm(count, generator=draw)[: count // 2]
        mask = torch.zeros(count, columns // count)
        mask[half] = 1
        shape = [1] * value.ndim
        shape[dim] = columns
        weights = torch.rand(value.shape, generator=draw, dtype=value.dtype) * mask.reshape(shape).to(value.dtype)
        gradient = _gradients(value, weights, [leaf])[0]
        assert gradient is not None
        felt = gradient.abs().movedim(axis, 0).reshape(rows, -1).amax(1) > 0
        outside = torch.ones(count, dtype=torch.bool)
        outside[half] = False
        choices = [index for index in choices if not bool(felt[index[outside]].any())]
    return choices[0] if choices else None


def _gradients(value: torch.Tensor, weights: torch.Tensor, leaves: Sequence[torch.Tensor]) -> tuple[torch.Tensor | None, ...]:
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    found = iter(torch.autograd.grad((value * weights).sum(), wanted, retain_graph=True, allow_unused=True)) if wanted else iter(())
    return tuple(next(found) if leaf.requires_grad else None for leaf in leaves)


@torch.no_grad()
def _require_equal(module: nn.Module, found: Sequence[Numbering], args: Any, kwargs: Any) -> None:
    leaves = lambda made: list(_floats(made))
    before, draw = leaves(module(*args, **kwargs)), torch.Generator().manual_seed(1)
    orders = [(each, torch.randperm(each.count, generator=draw)) for each in found]
    moved = copy.deepcopy(module)
    values = dict(itertools.chain(moved.named_parameters(remove_duplicate=False), moved.named_buffers()))
    for name, members in by_tensor(orders).items():
        if members[0][0].tied == name:
            values[name].data = permuted(values[name].data, members)
    for one, other in zip(before, leaves(moved(*args, **kwargs))):
        if not torch.allclose(one, other, rtol=1e-2, atol=1e-3 * float(one.abs().max()) + 1e-12):
            raise ModelError(
                f"{type(module).__name__}: its layers feed one another in a way that cannot be told, so nothing in it is renumbered."
            )


def _floats(made: Any) -> Iterator[torch.Tensor]:
    for each in tree_leaves(made if not hasattr(made, "to_tuple") else made.to_tuple()):
        if isinstance(each, torch.Tensor) and each.is_floating_point():
            yield each


def by_tensor(orders: Sequence[tuple[Numbering, torch.Tensor]]) -> dict[str, list[tuple[Member, torch.Tensor]]]:
    """What is done to each tensor: its axes that move, and the order of each."""
    found: dict[str, list[tuple[Member, torch.Tensor]]] = {}
    for numbering, order in orders:
        for member in numbering.members:
            found.setdefault(member.name, []).append((member, order))
    return found
