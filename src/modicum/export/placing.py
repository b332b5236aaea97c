"""Tensors put into a module: where they belong, what shares them, and what goes with blocks that are left out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modicum.core.errors import ModelError
from modicum.models.weights import install

_Place = tuple[nn.Module, str, str]
"""Where a module holds a parameter: its owner, the attribute, and the name in full."""


def assign(module: nn.Module, given: dict[str, torch.Tensor], dropped: list[str], directory: Path) -> None:
    """Put every tensor of the files where it belongs. Raises ``ModelError`` for one that is missing, of another shape, or nowhere at home."""
    homes: dict[int, list[_Place]] = {}
    for prefix, owner in module.named_modules():
        for attribute, parameter in owner._parameters.items():
            if parameter is not None:
                homes.setdefault(id(parameter), []).append((owner, attribute, f"{prefix}.{attribute}" if prefix else attribute))
    for places in homes.values():
        for part in _parted(places, given):
            _assign_one(part, given, dropped, directory)
    for name, value in given.items():
        _assign_rest(module, name, value, directory)


def _parted(places: list[_Place], given: Mapping[str, torch.Tensor]) -> list[list[_Place]]:
    """The places of one parameter, apart where the files hold a value for each of several: tied by the config, and not by the weights."""
    held = [place for place in places if place[2] in given]
    first, rest = held[:1], held[1:]
    return [first + [place for place in places if place not in held], *([place] for place in rest)]


def _assign_one(places: list[_Place], given: dict[str, torch.Tensor], dropped: list[str], directory: Path) -> None:
    owner, attribute, name = places[0]
    if name not in given:
        if any(name.startswith(f"{block}.") for block in dropped):
            return
        raise ModelError(f"{directory}: must hold {name}, does not. Write the files anew.")
    value, held = given.pop(name), owner._parameters[attribute]
    assert held is not None
    if tuple(value.shape) != tuple(held.shape):
        raise ModelError(f"{directory}: {name} must have shape {tuple(held.shape)}, has {tuple(value.shape)}. Check the module or config.")
    parameter = nn.Parameter(value, requires_grad=False)
    for owner, attribute, _ in places:
        install(owner, attribute, parameter)


def _assign_rest(module: nn.Module, name: str, value: torch.Tensor, directory: Path) -> None:
    """A buffer, or a bias that compression added to a module that had none."""
    prefix, _, attribute = name.rpartition(".")
    try:
        owner = module.get_submodule(prefix)
    except AttributeError:
        raise ModelError(f"{directory}: holds {name}, which the model does not have. Check the module or config.") from None
    if (buffer := owner._buffers.get(attribute)) is not None:
        if buffer.shape != value.shape:
            raise ModelError(f"{directory}: {name} must have shape {tuple(buffer.shape)}, has {tuple(value.shape)}. Check the config.")
        owner._buffers[attribute] = value
    elif attribute == "bias":
        owner.bias = nn.Parameter(value, requires_grad=False)
    else:
        raise ModelError(f"{directory}: holds {name}, which the model does not have. Check the module or config.")


def drop_blocks(module: nn.Module, dropped: list[str]) -> None:
    """Remove dropped blocks from their lists, renumbering what layers know of their place."""
    for list_name in sorted({name.rpartition(".")[0] for name in dropped}):
        parent, _, attribute = list_name.rpartition(".")
        owner = module.get_submodule(parent)
        gone = {int(name.rpartition(".")[2]) for name in dropped if name.rpartition(".")[0] == list_name}
        kept = [block for index, block in enumerate(getattr(owner, attribute)) if index not in gone]
        setattr(owner, attribute, nn.ModuleList(kept))
        for place, block in enumerate(kept):
            for part in block.modules():
                if isinstance(getattr(part, "layer_idx", None), int):
                    part.layer_idx = place
        trim_config(getattr(module, "config", None), gone)


def trim_config(config: Any, gone: set[int]) -> None:
    """Make a config describe a model without the blocks ``gone``: its depth and its per-layer lists."""
    depth = getattr(config, "num_hidden_layers", None)
    if config is None or depth is None:
        return
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == depth:
            setattr(config, name, [item for index, item in enumerate(value) if index not in gone])
    config.num_hidden_layers = depth - len(gone)


def persistent_buffers(module: nn.Module) -> dict[str, torch.Tensor]:
    """Buffers that belong to a saved state."""
    found = {}
    for prefix, owner in module.named_modules():
        for name, buffer in owner._buffers.items():
            if buffer is not None and name not in owner._non_persistent_buffers_set:
                found[f"{prefix}.{name}" if prefix else name] = buffer
    return found
