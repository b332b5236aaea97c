"""Blocks and units found by structure: no architecture is named here."""

from __future__ import annotations

from collections import Counter

import torch
from torch import nn

from modicum.core.unit import Kind, Unit
from modicum.models.model import Block
from modicum.models.weights import Weights


def kind_of(module: nn.Module) -> Kind | None:
    """What kind of unit a module's ``weight`` is, or None."""
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.Embedding):
        return "embedding"
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return "convolution"
    if type(module).__name__ == "Conv1D" and getattr(module, "nf", None) is not None:
        return "conv1d"
    return None


def find_units(module: nn.Module, weights: Weights) -> dict[str, Unit]:
    """Units with a module of their own, by name; experts of a stack are added once a rehearsal has seen how they are used."""
    units: dict[str, Unit] = {}
    for prefix, owner in module.named_modules():
        kind = kind_of(owner)
        if kind is None or owner._parameters.get("weight") is None:
            continue
        name = f"{prefix}.weight" if prefix else "weight"
        first = weights.first[name]
        if first in units:
            continue
        weight = weights.held(first)
        if not weight.is_floating_point() or not weight.numel():
            continue
        transposed = kind == "conv1d"
        shape = (weight.shape[1], weight.shape[0]) if transposed else (weight.shape[0], weight[0].numel())
        units[first] = Unit(
            name=first, parameter=first, module=prefix, kind=kind, shape=shape, stored_shape=tuple(weight.shape),
            dtype=weights.dtype(first), transposed=transposed, groups=getattr(owner, "groups", 1),
            aliases=tuple(alias for alias in weights.names[first] if alias != first),
        )  # fmt: skip
    return units


def find_stacks(module: nn.Module, weights: Weights) -> dict[str, dict[str, torch.Size]]:
    """Modules that own parameters of three axes with more than one slice: candidates for stacked experts, by module then attribute."""
    found: dict[str, dict[str, torch.Size]] = {}
    for prefix, owner in module.named_modules():
        if kind_of(owner) is not None:
            continue
        for attribute, parameter in owner._parameters.items():
            if parameter is not None and parameter.ndim == 3 and parameter.shape[0] > 1 and min(parameter.shape[1:]) > 1:
                found.setdefault(prefix, {})[attribute] = parameter.shape
    return found


def expert_units(prefix: str, attribute: str, weights: Weights, transposed: bool) -> list[Unit]:
    """One unit per expert of the stack ``prefix.attribute``."""
    name = f"{prefix}.{attribute}" if prefix else attribute
    first = weights.first[name]
    stack = weights.held(first)
    count, rows, columns = stack.shape
    shape = (columns, rows) if transposed else (rows, columns)
    return [
        Unit(name=f"{first}[{expert}]", parameter=first, module=prefix, kind="expert", shape=shape, stored_shape=tuple(stack.shape),
             dtype=weights.dtype(first), expert=expert, transposed=transposed)
        for expert in range(count)
    ]  # fmt: skip


def find_blocks(module: nn.Module, weights: Weights) -> dict[str, Block]:
    """Elements of the outermost lists of modules, in order of definition.

    An element must own parameters and not be a unit itself, and stand there once: one that is used several times is no step of its own.
    Nested lists (experts, branches) stay inside their block.
    """
    blocks: dict[str, Block] = {}
    counts = Counter(id(element) for owner in module.modules() if isinstance(owner, nn.ModuleList) for element in owner)
    for prefix, owner in module.named_modules():
        if not isinstance(owner, nn.ModuleList) or any(prefix.startswith(f"{name}.") for name in blocks):
            continue
        for index, element in enumerate(owner):
            name = f"{prefix}.{index}"
            if (
                counts[id(element)] == 1
                and kind_of(element) is None
                and not isinstance(element, nn.ModuleList)
                and next(element.parameters(), None) is not None
            ):
                blocks[name] = Block(name, prefix, index, ())
    shared = _owners(blocks, weights)
    return {name: Block(name, block.list_name, block.index, shared[name]) for name, block in blocks.items()}


def _owners(blocks: dict[str, Block], weights: Weights) -> dict[str, tuple[str, ...]]:
    """Parameters of each block; one that is tied to another block or to the trunk belongs to the trunk."""
    owned: dict[str, list[str]] = {name: [] for name in blocks}
    for first, names in weights.names.items():
        homes = {next((block for block in blocks if name.startswith(f"{block}.")), "") for name in names}
        if len(homes) == 1 and (home := homes.pop()):
            owned[home].append(first)
    return {name: tuple(found) for name, found in owned.items()}
