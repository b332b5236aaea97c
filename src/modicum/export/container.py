"""The project's own container: safetensors plus one versioned JSON, for any form and any module."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from typing_extensions import override

from modicum.core.errors import ModelError
from modicum.core.option import Option
from modicum.core.tensorfile import Shards
from modicum.core.unit import Site, Unit
from modicum.export._family import Entries, Layout, Target, copy_companions, save_config
from modicum.forms import Dense, Form, restore
from modicum.models.open import model_class, read_config, skeleton

FORMAT, VERSION = "modicum-container", 1
_FILE = "modicum.json"


class Container(Target):
    """Holds every form; ``modicum.load`` reads it."""

    name = "modicum"

    def sites(self) -> list[Site]:
        """Every unit is a site of its own; a tied weight is one unit."""
        order = {name: place for place, stage in enumerate(self.script.stages) for name in stage}
        units = sorted(self.model.units.values(), key=lambda unit: order.get(unit.name, len(order)))
        return [Site(unit.name, "tied" if unit.aliases else "unit", (unit,), data_free=self.script.data_free(unit)) for unit in units]

    @override
    def adapt(self, site: Site, option: Option) -> Option | None:
        return option.without_data() if site.data_free else option

    @override
    def unit_entries(self, unit: Unit, form: Form) -> Entries:
        return {f"{unit.name}:{part}": (tensor.dtype, tuple(tensor.shape)) for part, tensor in form.tensors().items()}

    @override
    def layout(self, forms: Mapping[str, Form], biases: Mapping[str, torch.Tensor], dropped: frozenset[str]) -> Layout:
        layout, weights = Layout(), self.model.weights
        treated = {name for name in forms if not isinstance(forms[name], Dense)}
        stacks = {self.model.units[name].parameter for name in treated if self.model.units[name].kind == "expert"}
        gone = {parameter for block in dropped for parameter in self.model.blocks[block].parameters}
        for first in weights.names:
            if first in gone:
                continue
            mine = [unit for unit in self.model.units.values() if unit.parameter == first]
            if first in treated or first in stacks:
                for unit in mine:
                    form = forms.get(unit.name)
                    shown = form if form is not None else Dense(torch.empty(unit.shape, dtype=unit.dtype, device="meta"))
                    layout.add(self.unit_entries(unit, shown), partial(self._parts, unit, forms))
            else:
                entry = {first: (weights.dtype(first), tuple(weights.held(first).shape))}
                layout.add(entry, partial(self._whole, first, forms))
        for module, bias in biases.items():
            name = f"{module}.bias"
            if name not in weights.first:
                layout.add({name: (bias.dtype, tuple(bias.shape))}, partial(dict, {name: bias}))
            else:
                layout.makers = [(names, (partial(dict, {name: bias})) if names == (name,) else make) for names, make in layout.makers]
        for name, buffer in persistent_buffers(self.model.module).items():
            layout.add({name: (buffer.dtype, tuple(buffer.shape))}, partial(dict, {name: buffer}))
        return layout

    def _whole(self, first: str, forms: Mapping[str, Form]) -> dict[str, torch.Tensor]:
        return {first: self.dense_value(first, forms)}

    def _parts(self, unit: Unit, forms: Mapping[str, Form]) -> dict[str, torch.Tensor]:
        form = forms.get(unit.name) or Dense(self.model.matrix(unit).contiguous())
        return {f"{unit.name}:{part}": tensor for part, tensor in form.tensors().items()}

    @override
    def finish(self, directory: Path, forms: Mapping[str, Form], dropped: frozenset[str]) -> None:
        treated = {name for name in forms if not isinstance(forms[name], Dense)}
        stacks = {self.model.units[name].parameter for name in treated if self.model.units[name].kind == "expert"}
        units = {}
        for unit in self.model.units.values():
            if unit.name in treated or unit.parameter in stacks:
                shown = (
                    forms[unit.name].describe()
                    if unit.name in forms
                    else {"kind": "dense", "shape": list(unit.shape), "dtype": str(unit.dtype)[6:]}
                )
                units[unit.name] = {
                    "form": shown, "parameter": unit.parameter, "stored_shape": list(unit.stored_shape),
                    "transposed": unit.transposed, "expert": unit.expert,
                }  # fmt: skip
        body = {"format": FORMAT, "version": VERSION, "class": type(self.model.module).__name__, "units": units, "dropped": sorted(dropped)}
        (directory / _FILE).write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
        if self.model.config is not None and hasattr(self.model.config, "save_pretrained"):
            save_config(self.model, copy.deepcopy(self.model.config), directory)
        copy_companions(self.model.directory, directory)

    @override
    def verify(self, directory: Path, forms: Mapping[str, Form]) -> tuple[nn.Module, dict[str, Any]]:
        into = None if self.model.config is not None else copy.deepcopy(self.model.module)
        module = load(directory, into=into)
        parameters = dict(module.named_parameters(remove_duplicate=False))
        worst = 0.0
        for name, form in forms.items():
            unit = self.model.units[name]
            if unit.parameter in parameters:
                got = unit.matrix(parameters[unit.parameter])
                worst = max(worst, float((got.float() - form.dense().to(got.dtype).float()).abs().max()))
        if worst > 0:
            raise ModelError(
                f"{directory}: a reloaded weight must equal the one that was made, differs by {worst:g}. Do not use these files."
            )
        return module, {"loader": "modicum.load", "units compared": len(forms), "largest weight difference": worst}


def load(directory: str | Path, *, into: nn.Module | None = None) -> nn.Module:
    """A working module from a directory that ``fit`` wrote: our container, or one for Transformers.

    ``into`` is the module to fill (changed in place) where the architecture is not one of Transformers. Raises ``ModelError``.
    """
    directory = Path(directory)
    if not (directory / _FILE).exists():
        return _load_transformers(directory)
    body = _read_body(directory / _FILE)
    if into is None:
        config = read_config(directory)
        into = skeleton(model_class(config, str(directory)), config)
    shards = Shards(directory)
    _fill(into, shards, body, directory)
    _drop(into, body["dropped"])
    return into.eval()


def _load_transformers(directory: Path) -> nn.Module:
    config = read_config(directory)
    try:
        return model_class(config, str(directory)).from_pretrained(directory, dtype="auto").eval()  # type: ignore[attr-defined]
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"{directory}: Transformers cannot load it ({(str(error).splitlines() or ['?'])[0][:200]}).") from None


def _read_body(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        if body["format"] != FORMAT or body["version"] != VERSION:
            raise ValueError(f"is {body['format']} {body['version']}, not {FORMAT} {VERSION}")
        if not isinstance(body["units"], dict) or not isinstance(body["dropped"], list):
            raise ValueError("units or dropped are malformed")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: must be the container's own description ({error}). Write the files anew.") from None
    return body


def _fill(module: nn.Module, shards: Shards, body: dict[str, Any], directory: Path) -> None:
    parts: dict[str, list[str]] = {}
    for name in shards.names():
        owner, _, part = name.rpartition(":")
        parts.setdefault(owner, []).append(part if owner else name)
    treated: dict[str, torch.Tensor] = {}
    for name, described in body["units"].items():
        unit = _unit(name, described, directory)
        tensors = {part: shards.read(f"{name}:{part}") for part in parts.get(name, [])}
        value = unit.stored(restore(described["form"], tensors).dense())
        if unit.expert is None:
            treated[unit.parameter] = value
        else:
            stack = treated.setdefault(unit.parameter, torch.empty(unit.stored_shape, dtype=value.dtype))
            stack[unit.expert] = value
    given = treated | {name: shards.read(name) for name in parts.get("", [])}
    _assign(module, given, body["dropped"], directory)


def _unit(name: str, described: dict[str, Any], directory: Path) -> Unit:
    try:
        form, stored = described["form"], tuple(int(size) for size in described["stored_shape"])
        return Unit(
            name=name, parameter=described["parameter"], module="", kind="linear", shape=(form["shape"][0], form["shape"][1]),
            stored_shape=stored, dtype=torch.float32, expert=described["expert"], transposed=bool(described["transposed"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ModelError(f"{directory}: unit {name} must be described in full ({error}). Write the files anew.") from None


def _assign(module: nn.Module, given: dict[str, torch.Tensor], dropped: list[str], directory: Path) -> None:
    homes: dict[int, list[tuple[nn.Module, str, str]]] = {}
    for prefix, owner in module.named_modules():
        for attribute, parameter in owner._parameters.items():
            if parameter is not None:
                homes.setdefault(id(parameter), []).append((owner, attribute, f"{prefix}.{attribute}" if prefix else attribute))
    for places in homes.values():
        found = next((name for _, _, name in places if name in given), None)
        if found is None:
            if any(places[0][2].startswith(f"{block}.") for block in dropped):
                continue
            raise ModelError(f"{directory}: must hold {places[0][2]}, does not. Write the files anew.")
        value = given.pop(found)
        held = places[0][0]._parameters[places[0][1]]
        assert held is not None
        if tuple(value.shape) != tuple(held.shape):
            raise ModelError(
                f"{directory}: {found} must have shape {tuple(held.shape)}, has {tuple(value.shape)}. Check the module or config."
            )
        parameter = nn.Parameter(value, requires_grad=False)
        for owner, attribute, _ in places:
            owner._parameters[attribute] = parameter
    for name, value in given.items():
        _assign_rest(module, name, value, directory)


def _assign_rest(module: nn.Module, name: str, value: torch.Tensor, directory: Path) -> None:
    """A buffer, or a bias that compression added to a module that had none."""
    prefix, _, attribute = name.rpartition(".")
    try:
        owner = module.get_submodule(prefix)
    except AttributeError:
        raise ModelError(f"{directory}: holds {name}, which the model does not have. Check the module or config.") from None
    if attribute in owner._buffers:
        owner._buffers[attribute] = value
    elif attribute == "bias":
        owner.bias = nn.Parameter(value, requires_grad=False)
    else:
        raise ModelError(f"{directory}: holds {name}, which the model does not have. Check the module or config.")


def _drop(module: nn.Module, dropped: list[str]) -> None:
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
