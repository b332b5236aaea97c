"""A PEFT adapter's folder as a delta."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from modicum.core.errors import near, quoted
from modicum.core.unit import Unit
from modicum.delta.applying import base_weights
from modicum.delta.delta import Delta
from modicum.delta.peft import experts
from modicum.delta.peft.adapter import CONFIG, Adapter, Layer
from modicum.delta.peft.low_rank import adalora, lora, projections, vera
from modicum.delta.peft.products import ia3, loha, lokr
from modicum.delta.peft.rotations import boft, hra, oft
from modicum.forms import Base, Dense, Form
from modicum.models.open import open_model
from modicum.models.trainable import trainable


@dataclass(frozen=True)
class Kind:
    """A ``peft_type``: how it is made a form, and how its tensors are called behind a layer's name."""

    read: Callable[[Adapter, Layer], dict[str, Form]]
    parts: tuple[str, ...]


_LORA = (
    "lora_A.weight", "lora_B.weight", "lora_B.bias", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector",
    "lora_magnitude_vector.weight",
)  # fmt: skip
KINDS: Mapping[str, Kind] = {
    "LORA": Kind(lora, _LORA),
    "ADALORA": Kind(adalora, ("lora_A", "lora_B", "lora_E")),
    "VERA": Kind(vera, ("vera_lambda_b", "vera_lambda_d")),
    "IA3": Kind(ia3, ("ia3_l",)),
    "LOHA": Kind(loha, ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")),
    "LOKR": Kind(lokr, ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")),
    "HRA": Kind(hra, ("hra_u",)),
    "OFT": Kind(oft, ("oft_R.weight",)),
    "BOFT": Kind(boft, ("boft_R", "boft_s")),
}
_INPUTS = {"PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT", "CARTRIDGE"}


def is_peft(path: str | Path) -> bool:
    """Whether a folder holds an adapter of PEFT."""
    return (Path(path) / CONFIG).is_file()


def from_peft(directory: str | Path, base: Any) -> Delta:
    """The change that a PEFT adapter makes to ``base``, its own base model (a folder, an id or a module), as its forward pass computes it.

    Whole parameters that were saved beside it (biases, ``modules_to_save``) are in it. Leaves know the hash of the base's weights.

    Raises ``ModelError`` for a kind that is not read, prompts and prefixes (they are inputs, and no weight holds them), tensors that are missing, of
    another shape or of nothing in the base, and changes that one weight cannot hold.
    """
    adapter = Adapter.read(Path(directory))
    told = str(adapter.config["peft_type"]).upper()
    if told in _INPUTS:
        raise adapter.error(f"{told} trains inputs, which no weight can hold. Keep it as an adapter.")
    if told not in KINDS:
        raise adapter.error(f"{quoted(told)} is a kind of adapter that is not read. {near(told, KINDS)}")
    model = open_model(base)
    weights = base_weights(model)
    units = _by_parameter(trainable(model.module))
    layers, whole, stacked = _sorted(adapter, KINDS[told], units, weights)
    _require_all(adapter, model.module, layers)
    forms: dict[str, Form] = {}
    saved = _whole(adapter, model.module, units, whole, weights)
    for layer in layers.values():
        layer.leaf = saved.pop(layer.unit.name, layer.leaf)
        if layer.bias is not None:
            layer.bias_leaf = saved.pop(layer.bias.name, layer.bias_leaf)
        kept = {} if layer.bias is None or isinstance(layer.bias_leaf, Base) else {layer.bias.name: layer.bias_leaf}
        forms |= {**kept, **KINDS[told].read(adapter, layer)}  # type: ignore[dict-item]
        if odd := sorted(layer.parts.keys() - layer.taken):
            raise adapter.error(f"{layer.module}.{odd[0]} belongs to nothing under these settings. Save the adapter anew.")
    forms |= saved | experts.read(adapter, stacked, units)
    shared, notes = projections(adapter, list(layers.values())) if told == "VERA" else ({}, ())
    if not forms:
        raise adapter.error("changes no weight. Save the adapter anew.")
    return Delta(forms, shared, str(base) if isinstance(base, str | Path) else "", (f"PEFT {told}", *notes)).stamped(weights)


def _by_parameter(units: Mapping[str, Unit]) -> dict[str, list[Unit]]:
    found: dict[str, list[Unit]] = {}
    for unit in units.values():
        for name in (unit.parameter, *unit.aliases):
            found.setdefault(name, []).append(unit)
    return found


def _sorted(
    adapter: Adapter, kind: Kind, units: Mapping[str, list[Unit]], weights: Callable[[str], torch.Tensor]
) -> tuple[dict[str, Layer], dict[str, torch.Tensor], dict[str, dict[str, torch.Tensor]]]:
    """Tensors by what they belong to: layers, whole parameters by name, and stacks of experts by module."""
    layers: dict[str, Layer] = {}
    whole: dict[str, torch.Tensor] = {}
    stacked: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in adapter.tensors.items():
        if name in ("base_model.vera_A", "base_model.vera_B") and kind is KINDS["VERA"]:
            adapter.shared[name] = tensor
            continue
        part = next((part for part in kind.parts if name.endswith("." + part)), None)
        if part is None:
            whole[name.replace(".base_layer.", ".").replace(".modules_to_save.", ".")] = tensor
            continue
        module = name[: -len(part) - 1]
        if adapter.config.get("target_parameters") and f"{module}.weight" not in units:
            stacked.setdefault(module, {})[part] = tensor
            continue
        if module not in layers:
            layers[module] = _layer(adapter, module, name, units, weights)
        layers[module].parts[part] = tensor
    return layers, whole, stacked


def _layer(adapter: Adapter, module: str, name: str, units: Mapping[str, list[Unit]], weights: Callable[[str], torch.Tensor]) -> Layer:
    found = units.get(f"{module}.weight", [])
    if len(found) != 1 or found[0].expert is not None:
        layers = [each.removesuffix(".weight") for each in units if each.endswith(".weight")]
        raise adapter.error(f"{quoted(name)} belongs to no layer of the base. {near(module, layers)}")
    (unit,) = found
    if unit.aliases:
        others = [each for each in (unit.parameter, *unit.aliases) if each != f"{module}.weight"]
        raise adapter.error(
            f"{module}: shares its weight with {quoted(others[0])}, which the adapter leaves alone: one weight cannot hold that. "
            "Keep it as an adapter."
        )
    bias = units.get(f"{module}.bias", [])
    return Layer(adapter, module, unit, bias[0] if bias else None, partial(weights, unit.name))


def _require_all(adapter: Adapter, module: Any, layers: Mapping[str, Layer]) -> None:
    """Raise ``ModelError`` where a layer that the settings name is not in the file."""
    targets = adapter.names("target_modules")
    if isinstance(targets, str) or any(
        adapter.config.get(name) for name in ("layers_to_transform", "exclude_modules", "target_parameters")
    ):
        return
    for target in targets:
        ending = f".{target}"
        named = [name for name, _ in module.named_modules() if name == target or name.endswith(ending)]
        if lacking := [name for name in named if name not in layers]:
            raise adapter.error(f"must hold what changes {lacking[0]}, which target_modules names, does not. Save the adapter anew.")


def _whole(
    adapter: Adapter,
    module: Any,
    units: Mapping[str, list[Unit]],
    whole: Mapping[str, torch.Tensor],
    weights: Callable[[str], torch.Tensor],
) -> dict[str, Form]:
    """Parameters that were saved as they are, by unit; those that are the base's own are left out. Raises ``ModelError``."""
    modules = adapter.names("modules_to_save")
    modules = [modules] if isinstance(modules, str) else modules
    owners = [name for name, _ in module.named_modules() if name and modules and name.endswith(tuple(modules))]
    forms: dict[str, Form] = {}
    for name, tensor in whole.items():
        if name not in units:
            raise adapter.error(f"{quoted(name)} belongs to nothing in the base. {near(name, units)}")
        owned = any(name.startswith(f"{owner}.") for owner in owners)
        asked = name.endswith(".bias") and adapter.config.get("bias", "none") != "none"
        table = units[name][0].kind == "embedding" or f"{name.removesuffix('.weight')}.base_layer.weight" in adapter.tensors
        if not (owned or asked or table):
            raise adapter.error(f"{quoted(name)} is saved, and no setting says why. Save the adapter anew.")
        for unit in units[name]:
            if tuple(tensor.shape) != unit.stored_shape or not tensor.is_floating_point():
                raise adapter.error(f"{name} must have shape {unit.stored_shape}, has {tuple(tensor.shape)}. Name its own base.")
            if any(other not in whole or not torch.equal(whole[other], tensor) for other in (unit.parameter, *unit.aliases)):
                raise adapter.error(
                    f"{name}: is one weight under several names, and the adapter has it otherwise under each. Keep it apart."
                )
            value = unit.matrix(tensor)
            if not torch.equal(value.to(unit.dtype), weights(unit.name)):
                forms[unit.name] = Dense(value.contiguous().clone())
    for owner in owners:
        for name, _ in module.get_submodule(owner).named_parameters():
            if f"{owner}.{name}" not in whole:
                raise adapter.error(f"must hold {owner}.{name}, which modules_to_save names, does not. Save the adapter anew.")
    return forms
