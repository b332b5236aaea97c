"""A container opened by Transformers' own ``from_pretrained``: what its config says, and how each weight is restored while it is loaded."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming

from modicum.core.errors import ModelError, quoted
from modicum.core.files import require_inside
from modicum.core.tensorfile import Shards
from modicum.core.unit import Unit
from modicum.export import container, shared
from modicum.export.mark import unmarked
from modicum.export.narrow import Incision, put_attributes
from modicum.forms import Form
from modicum.models.open import check_counts
from modicum.models.settled import make_room


def admit(config: Any) -> Any:
    """The config with which Transformers may go on. Raises ``ModelError`` where its numbers would fill the memory."""
    check_counts(config.to_dict(), getattr(config, "_name_or_path", "") or "config.json")
    kept = config.quantization_config
    unmarked(config).quantization_config = kept
    return config


@dataclass
class _Restored:
    """One parameter in the making: the units it is made of, what is cut from it, and the dtype that Transformers wants."""

    units: list[tuple[Unit, dict[str, Any]]]
    incision: Incision | None = None


@dataclass
class Opening:
    """One container on its way into one model, whose modules are on ``meta`` and take their final shapes here."""

    directory: Path
    target: dict[str, str]  # stored tensor's name → the model's
    restored: dict[str, _Restored]  # parameter, by the container's name → its making
    keys: dict[str, list[str]]  # parameter → names of what is stored for it
    shared: dict[str, torch.Tensor] = field(default_factory=dict)
    errors: list[ModelError] = field(default_factory=list)

    @classmethod
    def of(cls, model: nn.Module, files: list[str] | None) -> Opening:
        """Check the files, give the model the shapes they need, and find where each stored tensor goes. Raises ``ModelError``."""
        directory = _directory(files)
        body = container.read_body(directory)
        with Shards(directory) as shards:
            names = sorted(name for name in shards.names() if not name.startswith(shared.PREFIX))
            make_room(model, body["settled"], container.stored_shapes(body, shards))
            modules = _modules(model, names)
            opening = cls(directory, {}, {}, defaultdict(list), shared.read(shards))
            opening._describe(body, modules, names)
            opening._narrow(body, modules, shards)
        if opening.shared:  # they belong to no parameter of the model, and are no surprise
            known: Any = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
            model._keys_to_ignore_on_load_unexpected = {*known, f"^{shared.PREFIX}"}  # type: ignore[assignment]
        _add_biases(modules, names)
        _drop(model, modules, body["dropped"], directory)
        opening._place(model, modules, names)
        opening._require_whole(model, body)
        return opening

    def _describe(self, body: dict[str, Any], modules: dict[str, nn.Module], names: list[str]) -> None:
        """Find the units whose weights the model has."""
        taken: dict[str, set[int]] = {}
        for name, described in body["units"].items():
            unit = container.described_unit(name, described, self.directory)
            if unit.module in modules:
                container.check_place(unit, modules, taken.setdefault(unit.parameter, set()), self.directory)
                self.restored.setdefault(unit.parameter, _Restored([])).units.append((unit, described["form"]))
        parameters = {name: described["parameter"] for name, described in body["units"].items()}
        for name in names:
            unit_name, _, part = name.rpartition(":")
            if unit_name and unit_name not in parameters:
                raise ModelError(f"{self.directory}: holds {quoted(name)}, which belongs to no unit. Write the files anew.")
            self.keys[parameters[unit_name] if unit_name else part].append(name)

    def _narrow(self, body: dict[str, Any], modules: dict[str, nn.Module], shards: Shards) -> None:
        """Give the modules whose cuts may be narrow the shapes that remain."""
        groups = [group for group in container.narrow_groups(body, self.directory) if all(unit in self.restored for unit in group.units)]
        for unit_name in (unit for group in groups for unit in group.units):
            making = self.restored[unit_name]
            [(unit, described)] = making.units
            parts = {key.rpartition(":")[2]: shards.read(key) for key in self.keys[unit_name]}
            making.incision = container.resized(unit, shared.restored(described, parts, self.shared), modules, self.directory)
        for group in groups:
            try:
                put_attributes(modules, group)
            except ValueError as error:
                raise container.narrow_error(self.directory, error) from None

    def _place(self, model: nn.Module, modules: dict[str, nn.Module], names: list[str]) -> None:
        """Name each stored tensor's place in the model, whose blocks may have moved up."""
        now = {id(module): prefix for prefix, module in model.named_modules(remove_duplicate=False)}
        for parameter, keys in self.keys.items():
            owner, _, attribute = parameter.rpartition(".")
            prefix = now.get(id(modules[owner])) if owner in modules else None
            if prefix is not None:
                self.target |= dict.fromkeys(keys, f"{prefix}.{attribute}" if prefix else attribute)

    def _require_whole(self, model: nn.Module, body: dict[str, Any]) -> None:
        """Raise ``ModelError`` where a weight that the files should hold is not there, or where most of the model would be random."""
        found = set(self.target.values())
        held: dict[int, list[str]] = defaultdict(list)
        sizes = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            held[id(parameter)].append(name)
            sizes[name] = parameter.numel()
        ties = getattr(model, "all_tied_weights_keys", None) or {}
        tied = set(ties) | set(ties.values())
        missing = [names[0] for names in held.values() if found.isdisjoint(names) and tied.isdisjoint(names)]
        if missing and type(model).__name__ == body["class"]:
            raise ModelError(f"{self.directory}: must hold {missing[0]}, does not. Write the files anew.")
        if 2 * sum(map(sizes.__getitem__, missing)) > sum(sizes.values()):
            raise ModelError(
                f"{self.directory}: holds a {body['class']}, of which {type(model).__name__} takes too little. Open it as {body['class']}."
            )

    def conversions(self) -> list[Any]:
        """What Transformers needs to know of names and values."""
        biases = self._biases()
        taken = {key for converter in biases for key in converter.keys}  # names are moved before converters see them
        moved = {key: target for key, target in self.target.items() if ":" not in key and key != target and key not in taken}
        renaming = [_Moved(moved)] if moved else []
        made = [name for name in self.keys if name in self.restored and all(key in self.target for key in self.keys[name])]
        converters = [_Converter(self.keys[name], self.target[self.keys[name][0]], _Restore(self, self.restored[name])) for name in made]
        return [*renaming, *converters, *biases]

    def _biases(self) -> list[_Converter]:
        """The biases of narrow modules are stored whole."""
        found: list[_Converter] = []
        for making in self.restored.values():
            incision = making.incision
            name = "" if incision is None else f"{incision.unit.module}.bias"
            if incision is not None and incision.rows is not None and name in self.target:
                found.append(_Converter([name], self.target[name], _CutBias(incision)))
        return found

    def finish(self) -> None:
        """Raise what a weight's making met: Transformers would only report it."""
        if self.errors:
            raise self.errors[0]


class _Moved(WeightRenaming):
    """Names by a table. They are names, no patterns."""

    def __init__(self, names: dict[str, str]):
        super().__init__("stored", "held")
        self.table = names

    def rename_source_key(self, source_key: str) -> tuple[str, str | None]:
        return self.table.get(source_key, source_key), None


class _Converter(WeightConverter):
    """Gathers what is stored for one parameter, by name, and restores it."""

    restores = True

    def __init__(self, keys: list[str], target: str, operation: _Restore | _CutBias):
        super().__init__([re.escape(key) for key in keys], ["held"], [operation])
        self.force_cpu = True
        self.keys, self.target, self.operation = dict.fromkeys(keys), target, operation

    def rename_source_key(self, source_key: str) -> tuple[str, str | None]:
        return (self.target, re.escape(source_key)) if source_key in self.keys else (source_key, None)

    def add_tensor(self, target_key: str, source_key: str, source_pattern: str, future: Any) -> None:
        super().add_tensor(target_key, source_key, source_key, future)

    def __deepcopy__(self, memo: Any) -> _Converter:
        return self  # it belongs to one parameter already


class _Restore(ConversionOps):
    """Forms to the weight that the model holds."""

    def __init__(self, opening: Opening, making: _Restored):
        self.opening, self.making = opening, making
        self.dtype: torch.dtype | None = None

    def convert(self, input_dict: dict[str, Any], *_: Any, full_layer_name: str = "", model: Any = None, **__: Any) -> dict[str, Any]:
        held = model.get_parameter(full_layer_name)
        try:
            if hasattr(held, "_local_tensor"):
                raise ValueError("a container cannot be split among devices while it is loaded")
            value = self._value({name: tensors[0] for name, tensors in input_dict.items()})
        except Exception as error:  # whatever restoring raises at parts that are not its own
            name = self.making.units[0][0].parameter
            told = error if isinstance(error, ModelError) else f"{self.opening.directory}: {quoted(name)} cannot be restored ({error})."
            self.opening.errors.append(told if isinstance(told, ModelError) else ModelError(told))
            return {full_layer_name: torch.zeros(held.shape, dtype=held.dtype)}
        return {full_layer_name: value.to(self.dtype or held.dtype)}

    def _value(self, parts: dict[str, torch.Tensor]) -> torch.Tensor:
        if self.making.incision is not None:
            incision = self.making.incision
            [(unit, described)] = self.making.units
            return incision.narrow.stored(incision.matrix(_form(unit, described, parts, self.opening.shared))).contiguous()
        made: dict[str, torch.Tensor] = {}
        for unit, described in self.making.units:
            matrix = _form(unit, described, parts, self.opening.shared).dense()
            if unit.expert is None:
                return unit.stored(matrix).contiguous()
            container.stack(made, unit, matrix)
        container.require_experts(made, self.making.units[0][0].parameter, len(self.making.units), self.opening.directory)
        return made[self.making.units[0][0].parameter]


class _CutBias(ConversionOps):
    """What a narrow module keeps of its bias."""

    def __init__(self, incision: Incision):
        self.incision = incision
        self.dtype: torch.dtype | None = None

    def convert(self, input_dict: dict[str, Any], *_: Any, full_layer_name: str = "", model: Any = None, **__: Any) -> dict[str, Any]:
        [[value]] = input_dict.values()
        return {full_layer_name: self.incision.bias(value).to(self.dtype or model.get_parameter(full_layer_name).dtype)}


def _form(unit: Unit, described: dict[str, Any], parts: dict[str, torch.Tensor], held: Mapping[str, torch.Tensor]) -> Form:
    mine = {name.rpartition(":")[2]: part for name, part in parts.items() if name.rpartition(":")[0] == unit.name}
    return shared.restored(described, mine, held)


def _directory(files: list[str] | None) -> Path:
    if not files:
        raise ModelError("a container: must be opened from its directory, no file came. Give the directory.")
    directory = Path(files[0]).parent
    if not (directory / container.FILE).exists():
        raise ModelError(
            f"{directory}: must hold {container.FILE}, does not. Fetch the whole repository (huggingface_hub.snapshot_download) and give its "
            "folder."
        )
    require_inside(directory)
    return directory


def _modules(model: nn.Module, names: list[str]) -> dict[str, nn.Module]:
    """The model's modules by the container's names: it may hold a base model with a head that the model has not, or the other way round."""
    own, prefix = dict(model.named_modules(remove_duplicate=False)), f"{getattr(model, 'base_model_prefix', '')}."
    inner = {name.removeprefix(prefix): module for name, module in own.items() if name.startswith(prefix)}
    outer = {f"{prefix}{name}".removesuffix("."): module for name, module in own.items()}
    owners = {name.rpartition(":")[0].rpartition("[")[0] or name.rpartition(":")[0] or name for name in names}
    owners = {name.rpartition(".")[0] for name in owners}
    views = [own] if prefix == "." else [own, inner, outer]
    return max(views, key=lambda view: len(owners & view.keys()))


def _add_biases(modules: dict[str, nn.Module], names: list[str]) -> None:
    """Make room for biases that compression added to modules that had none."""
    for name in names:
        owner = modules.get(name.removesuffix(".bias")) if name.endswith(".bias") else None
        weight = None if owner is None else owner._parameters.get("weight")
        if owner is not None and weight is not None and getattr(owner, "bias", True) is None:
            rows = getattr(owner, "out_features", None) or getattr(owner, "nf", None) or weight.shape[0]
            owner.bias = nn.Parameter(weight.new_empty(rows), requires_grad=False)


def _drop(model: nn.Module, modules: dict[str, nn.Module], dropped: list[str], directory: Path) -> None:
    own = {id(module): name for name, module in model.named_modules(remove_duplicate=False)}
    inside = [name for name in dropped if name in modules]
    if len(inside) < len(dropped):
        raise ModelError(
            f"{directory}: dropped must name blocks of the model, {quoted(repr(sorted(set(dropped) - set(inside))[0]))} is none."
        )
    container.drop_blocks(model, [own[id(modules[name])] for name in inside])
