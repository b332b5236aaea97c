"""Blocks and units found by structure: no architecture is named here."""

from __future__ import annotations

from collections import Counter

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from modicum.core.unit import Kind, Unit
from modicum.models.model import Block, Model
from modicum.models.weights import Weights

# Parameters of fewer weights, outside the layers that torch knows, are not worth a form.
_SMALLEST = 256
# Torch's layers that use several weights in one call: like a linear layer no steps of their own, for their inputs are met at that call.
_WHOLE = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)


def kind_of(module: nn.Module) -> Kind | None:
    """What kind of unit a module's ``weight`` is, or None."""
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.Embedding):
        return "embedding"
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return "convolution"
    if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        return "transposed convolution"
    if type(module).__name__ == "Conv1D" and getattr(module, "nf", None) is not None:
        return "conv1d"
    return None


def direct_kind(owner: nn.Module, attribute: str, parameter: torch.Tensor) -> Kind | None:
    """What kind of unit a parameter is that its module uses in its own way, or None; whether it multiplies a rehearsal shows."""
    if not is_matrix(parameter) or is_parametrized(owner, attribute) or kind_of(owner) is not None:
        return None
    if isinstance(owner, nn.RNNBase | nn.RNNCellBase):
        return "recurrent"
    if isinstance(owner, nn.MultiheadAttention):
        return "packed"
    if isinstance(owner, nn.EmbeddingBag):
        return "looked up"
    return "parameter" if parameter.numel() >= _SMALLEST else None


def is_matrix(parameter: torch.Tensor) -> bool:
    """Whether a parameter has two axes or more along which it varies."""
    return sum(size > 1 for size in parameter.shape) > 1


def is_parametrized(owner: nn.Module, attribute: str) -> bool:
    """Whether the weight that is used is computed from this parameter by a parametrization, of torch's present kind or its former ones."""
    former = attribute.rpartition("_")[0]
    return isinstance(owner, ParametrizationList) or (
        attribute.endswith(("_g", "_v", "_orig")) and former not in owner._parameters and hasattr(owner, former)
    )


def find_units(module: nn.Module, weights: Weights) -> dict[str, Unit]:
    """Units by name: weights of modules, and parameters that modules may multiply in their own way. A rehearsal adds experts of stacks, once it
    has seen how they are used, and takes away parameters that multiply nothing.
    """
    units: dict[str, Unit] = {}
    for prefix, owner in module.named_modules():
        for attribute, parameter in owner._parameters.items():
            if parameter is None or not parameter.is_floating_point() or not parameter.numel():
                continue
            called = kind_of(owner) if attribute == "weight" else None
            kind = called or direct_kind(owner, attribute, parameter)
            first = weights.first[f"{prefix}.{attribute}" if prefix else attribute]
            if kind is not None and first not in units:
                units[first] = _unit(prefix, owner, kind, first, weights)
    return units


def _unit(prefix: str, owner: nn.Module, kind: Kind, first: str, weights: Weights) -> Unit:
    weight, transposed = weights.held(first), kind in ("conv1d", "transposed convolution")
    lead, rest = weight.shape[0], weight[0].numel()
    if lead == 1 and kind == "parameter":  # an axis that broadcasts
        lead, rest = weight.shape[1], weight[0, 0].numel()
    return Unit(
        name=first, parameter=first, module=prefix, kind=kind, shape=(rest, lead) if transposed else (lead, rest),
        stored_shape=tuple(weight.shape), dtype=weights.dtype(first), transposed=transposed,
        groups=getattr(owner, "groups", 1) if "convolution" in kind else 1,
        aliases=tuple(alias for alias in weights.names[first] if alias != first),
    )  # fmt: skip


def plain_parameters(model: Model) -> dict[str, str]:
    """Parameters that are no unit's, each with the reason why it stays as it is."""
    treated = {unit.parameter for unit in model.units.values()}
    names = [name for name in model.weights.names if name not in treated]
    return {name: _why_plain(model.module, name, model.weights.held(name)) for name in names}


def _why_plain(module: nn.Module, name: str, parameter: torch.Tensor) -> str:
    prefix, _, attribute = name.rpartition(".")
    if not parameter.is_floating_point():
        return "integer"
    if not is_matrix(parameter):
        return "vector"
    if is_parametrized(module.get_submodule(prefix), attribute):
        return "parametrized"
    return "table" if parameter.numel() >= _SMALLEST else "small"


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

    An element must own parameters and not be a unit itself or a layer of several, and stand there once: one that is used several times is no step
    of its own. Nested lists (experts, branches) stay inside their block.
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
                and not isinstance(element, (nn.ModuleList, *_WHOLE))
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
