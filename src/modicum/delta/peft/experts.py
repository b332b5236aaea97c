"""Adapters on stacked parameters: a pair of factors for each expert, told one after the other in two tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from modicum.core.errors import quoted
from modicum.core.unit import Unit
from modicum.delta.peft.adapter import Adapter
from modicum.delta.peft.low_rank import strength
from modicum.forms import Base, Form, LowRank, Sum

_INNER = ".base_layer"


def read(adapter: Adapter, stacked: Mapping[str, Mapping[str, torch.Tensor]], units: Mapping[str, list[Unit]]) -> dict[str, Form]:
    """Forms by expert. Wrappers lie in each other: the innermost has the first parameter of its module. Raises ``ModelError``."""
    forms: dict[str, Form] = {}
    modules: dict[str, dict[int, Mapping[str, torch.Tensor]]] = {}
    for name, parts in stacked.items():
        module = name.replace(_INNER, "")
        modules.setdefault(module, {})[name.count(_INNER)] = parts
    targets = adapter.names("target_parameters")
    targets = [targets] if isinstance(targets, str) else targets
    for module, depths in modules.items():
        own = [name for name in units if name.rpartition(".")[0] == module]
        named = [name for name in own if any(name == target or name.endswith(f".{target}") for target in targets)]
        if len(named) != len(depths) or sorted(depths) != list(range(len(depths))):
            raise adapter.error(f"{quoted(module)}: {len(depths)} parameters are changed and {len(named)} are named. Name its own base.")
        for depth, name in zip(sorted(depths, reverse=True), named):
            forms |= _stack(adapter, module, name, depths[depth], units[name])
    return forms


def _stack(adapter: Adapter, module: str, name: str, parts: Mapping[str, torch.Tensor], units: list[Unit]) -> dict[str, Form]:
    if parts.keys() != {"lora_A.weight", "lora_B.weight"}:
        raise adapter.error(
            f"{quoted(name)}: must have lora_A.weight and lora_B.weight, has {', '.join(sorted(parts))}. Save the adapter anew."
        )
    if any(unit.aliases or unit.kind not in ("expert", "parameter", "looked up") for unit in units):
        raise adapter.error(f"{quoted(name)}: is no parameter that stands alone. Keep it as an adapter.")
    if adapter.flag("use_dora") or adapter.config.get("init_lora_weights", True) not in (True, False, None, "gaussian"):
        raise adapter.error(f"{quoted(name)}: is a stack, which plain LoRA alone is read for. Correct the settings.")
    rank, scale = strength(adapter, module)
    (rows, columns), count = units[0].shape, len(units)
    first, second = parts["lora_A.weight"], parts["lora_B.weight"]
    if tuple(first.shape) != (rank * count, columns) or tuple(second.shape) != (rows, rank * count):
        shapes = f"{(rank * count, columns)} and {(rows, rank * count)}, have {tuple(first.shape)} and {tuple(second.shape)}"
        raise adapter.error(f"{quoted(name)}: its factors must have shapes {shapes}. Name its own base.")
    right, left = first.float().reshape(count, rank, columns), second.float().reshape(rows, rank, count)
    return {
        unit.name: Sum(
            (Base(unit.shape, unit.dtype, unit.name), LowRank((left[:, :, at] * scale).contiguous(), right[at].contiguous().clone()))
        )
        for at, unit in enumerate(units)
    }
