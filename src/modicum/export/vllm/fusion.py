"""Which scheme vLLM gives each of its layers, worked out from the files alone, and whether the files hold what it will look for.

vLLM puts several modules of a checkpoint into one layer, and asks of each layer whether the names of its parts are ignored and which target
fits them. It goes by the first part: where the others are of another scheme it says so for what is ignored, and for targets it does not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from modicum.core.errors import ModelError
from modicum.core.files import read_json
from modicum.core.tensorfile import Shards
from modicum.core.tensorformat import Entry
from modicum.export.vllm.architectures import Architecture

_EXPERT = re.compile(r"(.*\.experts)\.\d+\.([^.]+)")
# By format: the tensor that holds a module's codes, its dtype, and the bits of one of its numbers.
_STORED: dict[str, dict[str, tuple[torch.dtype, int]]] = {
    "pack-quantized": {"weight_packed": (torch.int32, 32)},
    "int-quantized": {"weight": (torch.int8, 8)},
    "float-quantized": {"weight": (torch.float8_e4m3fn, 8)},
    "nvfp4-pack-quantized": {"weight_packed": (torch.uint8, 8)},
    "mxfp4-pack-quantized": {"weight_packed": (torch.uint8, 8)},
}
# Scales of which a layer that is made of several modules takes one.
_SHARED = {"weight_global_scale": "global scale", "input_scale": "scale of inputs"}


@dataclass(frozen=True)
class Layer:
    """A layer of vLLM: its name, the modules of the checkpoint it is made of, and its group of the quantization config, or None."""

    name: str
    parts: tuple[str, ...]
    group: Mapping[str, Any] | None


def layers(modules: Iterable[str], config: Mapping[str, Any], row: Architecture) -> list[Layer]:
    """The layers that modules of a checkpoint become, each with its scheme. Raises ``ModelError`` where parts of one layer differ."""
    groups = {target: group for group in config.get("config_groups", {}).values() for target in group["targets"]}
    parts: dict[str, list[str]] = {}
    for module in modules:
        parts.setdefault(_layer(module, row), []).append(module)
    for name, members in parts.items():
        last = name.rpartition(".")[2]
        if missing := set(row.fused.get(last, ())) - {member.rpartition(".")[2] for member in members} - {last}:
            raise ModelError(f"{name}: vLLM makes it of {', '.join(row.fused[last])}, {sorted(missing)[0]} is not there.")
    return [_scheme(name, tuple(members), groups, config.get("ignore", [])) for name, members in parts.items()]


def _layer(module: str, row: Architecture) -> str:
    """The layer that a module becomes part of."""
    if expert := _EXPERT.fullmatch(module):
        return expert[1]
    parent, _, last = module.rpartition(".")
    fused = next((name for name, members in row.fused.items() if last in members), last)
    return f"{parent}.{fused}" if parent else fused


def _scheme(name: str, parts: tuple[str, ...], groups: Mapping[str, Any], ignore: Iterable[str]) -> Layer:
    named = lambda one: None if _fits(one, ignore) else groups.get(_fits(one, groups) or "")
    given = {part: named(part) for part in parts}
    first, *others = given
    for other in others:
        if _numbers(given[other]) != _numbers(given[first]):
            raise ModelError(f"{name}: vLLM gives it one scheme, {first} and {other} have two. Choose one for both.")
    group = None if _fits(name, ignore) else groups.get(_fits(name, groups) or "", given[first])
    if _numbers(group) != _numbers(given[first]):
        raise ModelError(f"{name}: is named as a whole too, and its parts otherwise. Choose one scheme for both.")
    return Layer(name, parts, group)


def _fits(name: str, targets: Iterable[str]) -> str | None:
    """The first of the targets that a name equals, or whose pattern fits its beginning."""
    match = lambda target: re.match(target[3:], name) if target.startswith("re:") else target == name
    return next((target for target in targets if match(target)), None)


def _numbers(group: Mapping[str, Any] | None) -> Any:
    return None if group is None else [group.get(key) for key in ("format", "weights", "input_activations")]


def require_readable(directory: Path, row: Architecture) -> int:
    """The number of layers of a directory, each of which vLLM finds stored as its scheme says. Raises ``ModelError``."""
    config = read_json(directory / "config.json").get("quantization_config") or {}
    with Shards(directory) as shards:
        held: dict[str, dict[str, Entry]] = {}
        for name in shards.names():
            module, _, part = name.rpartition(".")
            held.setdefault(module, {})[part] = shards.entry(name)
        found = layers([name for name, parts in held.items() if _matrix(parts)], config, row)
        for layer in found:
            for part in layer.parts:
                _require_stored(part, held[part], layer.group, config.get("format", ""))
            for part, kind in _SHARED.items():
                scales = {float(shards.read(f"{module}.{part}")) for module in layer.parts if part in held[module]}
                if len(scales) > 1:
                    raise ModelError(f"{layer.name}: vLLM takes one {kind} for all of it, {len(scales)} are stored. Choose another format.")
    return len(found)


def _matrix(parts: Mapping[str, Entry]) -> bool:
    """Whether a module has a weight of two axes, quantized or not."""
    return any(len(parts[name].shape) == 2 for name in ("weight", "weight_packed") if name in parts)


def _require_stored(module: str, parts: Mapping[str, Entry], group: Mapping[str, Any] | None, whole: str) -> None:
    """Raise ``ModelError`` where a module's tensors are not those of its scheme."""
    scales = "weight_scale" in parts
    if group is None:
        if scales or "weight_packed" in parts:
            raise ModelError(f"{module}: is quantized, no target names it for vLLM. Choose another name for it.")
        return
    weights, stored = group["weights"], _STORED[group.get("format") or whole]
    for name, (dtype, bits) in stored.items():
        if name not in parts or parts[name].dtype != dtype or not scales:
            raise ModelError(f"{module}: vLLM looks for {name} in {dtype} and a scale beside it, finds {', '.join(sorted(parts))}.")
        width = weights.get("group_size")
        if width is None:
            continue
        rows, groups = parts["weight_scale"].shape
        columns = groups * width
        if parts[name].shape != (rows, math.ceil(columns * weights["num_bits"] / bits)):
            raise ModelError(f"{module}: {name} has {parts[name].shape} numbers, which {columns} columns in groups of {width} do not take.")
