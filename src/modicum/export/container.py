"""The project's own container: safetensors plus one versioned JSON, for any form and any module."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from typing_extensions import override

from modicum.core.arguments import checked
from modicum.core.errors import ModelError, quoted
from modicum.core.files import read_json, require_inside
from modicum.core.option import Option
from modicum.core.tensorfile import Shards
from modicum.core.unit import Site, Unit
from modicum.data.splits import Batch
from modicum.export import shared
from modicum.export._family import Entries, Layout, Target
from modicum.export.companions import copy_companions, save_config, save_generation
from modicum.export.foreign import load_other
from modicum.export.mark import mark, unmarked
from modicum.export.narrow import TOLERANCE, Group, Incision, Trial, dummy, fits, group_units, put_attributes, resize
from modicum.export.placing import assign, drop_blocks, persistent_buffers
from modicum.export.precise import precise_output, relative_gap
from modicum.export.taking import take_as, take_plainly
from modicum.forms import Cut, Dense, Form
from modicum.models.copying import bare, copied
from modicum.models.extra import extra_states, give_back
from modicum.models.open import model_class, read_config, skeleton
from modicum.models.settled import make_room

FORMAT, VERSION = "modicum-container", 1
FILE = "modicum.json"


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
        return self.option_for(site, option)

    @override
    def unit_entries(self, unit: Unit, form: Form) -> Entries:
        return {f"{unit.name}:{part}": entry for part, entry in form.outline.items()}

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
        for name, tensor in shared.stored(forms.values()).items():
            layout.add({name: (tensor.dtype, tuple(tensor.shape))}, partial(dict, {name: tensor}))
        for name, buffer in persistent_buffers(self.model.stored.module).items():
            layout.add({name: (buffer.dtype, tuple(buffer.shape))}, partial(dict, {name: buffer}))
        for name, value in extra_states(self.model.stored.module)[1].items():
            layout.add({name: (value.dtype, tuple(value.shape))}, partial(dict, {name: value}))
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
        if extra := extra_states(self.model.stored.module)[0]:
            body["extra"] = extra
        if self.model.settled.computed:
            body["settled"] = self.model.settled.computed
        (directory / FILE).write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
        if self.model.config is not None and hasattr(self.model.config, "save_pretrained"):
            config = copy.deepcopy(self.model.config)
            if getattr(config, "dtype", None) is None:
                config.dtype = self.model.dtype  # else a loader takes that of the first tensor it meets, which may be a scale
            save_config(self.model, config, directory)
            save_generation(self.model, directory)
            mark(directory, {"format": FORMAT, "version": VERSION})
        copy_companions(self.model.directory, directory)

    @override
    def verify(
        self, directory: Path, forms: Mapping[str, Form], batch: Batch | None = None
    ) -> tuple[nn.Module, dict[str, Any]]:  # fmt: skip
        """Reload and compare every weight; then find, on ``batch``, which cuts may be loaded narrow, and note that beside the weights.

        The module is the one whose cuts are zeros: it does what the forms do, to the bit. A narrow one sums in another order.
        """
        module, modules = self._reloaded(directory, narrow=False)
        self._compare(directory, modules, forms, {})
        found: dict[str, Any] = {"loader": "modicum.load", "units compared": len(forms), "largest weight difference": 0.0}
        incisions = {name: cut for name, form in forms.items() if (cut := Incision.of(self.model.units[name], form)) is not None}
        if not incisions:
            return module, found
        groups = group_units(incisions, [name for stage in self.script.stages for name in stage])
        apart = dict.fromkeys(incisions.keys() - {unit for group in groups for unit in group.units}, "no coupled cut ends it")
        try:
            trial = Trial(module, modules, incisions, batch or dummy(module))
        except Exception as error:  # a model's own forward on an input that may not suit it
            _record(directory, [])
            why = f"no input to try it on ({quoted(error, 120)})"
            return module, found | {"narrow": [], "as wide as before": apart | {group.units[-1]: why for group in groups}}
        chosen = trial.run(groups)
        narrow = {unit: incisions[unit] for group in chosen for unit in group.units}
        _record(directory, chosen)
        found |= {"narrow": sorted(narrow), "as wide as before": apart | trial.reasons}
        if narrow:
            reference, short = trial.reference, trial.batch
            del module, modules, trial  # one copy in memory at a time
            found["narrow difference"] = self._verify_narrow(directory, forms, narrow, reference, short)
            module, modules = self._reloaded(directory, narrow=False)
        return module, found

    @override
    def as_loaded(self, directory: Path, module: nn.Module) -> nn.Module:
        """The module with cuts as narrow as they may be: ``verify`` gives it with zeros in their place."""
        return self._reloaded(directory, narrow=True)[0] if narrow_groups(read_body(directory), directory) else module

    def _reloaded(self, directory: Path, *, narrow: bool) -> tuple[nn.Module, dict[str, nn.Module]]:
        """A module filled from the files, and its modules by their names before blocks are dropped, which renumbers the others."""
        module = copied(self.model.stored.module, apart=True) if self.model.config is None else _skeleton(directory)
        modules = dict(module.named_modules())
        return load(directory, into=module, narrow=narrow), modules

    def _verify_narrow(
        self, directory: Path, forms: Mapping[str, Form], narrow: Mapping[str, Incision], reference: tuple[torch.Tensor, ...], batch: Batch
    ) -> float:
        """Reload narrow and compare with what the forms gave on ``batch``; the relative difference in float32. Raises ``ModelError``."""
        module, modules = self._reloaded(directory, narrow=True)
        self._compare(directory, modules, forms, narrow)
        gap = relative_gap(precise_output(module, batch), reference)
        if not gap <= TOLERANCE:
            raise ModelError(f"{directory}: the narrow model must give what the wide one gives, differs by {gap:.2g}. Report this.")
        return gap

    def _compare(
        self, directory: Path, modules: Mapping[str, nn.Module], forms: Mapping[str, Form], narrow: Mapping[str, Incision]
    ) -> None:
        """Raise ``ModelError`` unless every weight is the one that was made."""
        for name, form in forms.items():
            unit = self.model.units[name]
            owner, _, attribute = unit.parameter.rpartition(".")
            held = modules[owner]._parameters[attribute] if owner in modules else None
            if held is None or held.device.type == "meta":
                continue
            got = narrow[name].narrow.matrix(held) if name in narrow else unit.matrix(held)
            made = narrow[name].pick(form.dense()) if name in narrow else form.dense()
            worst = float((got.float() - made.to(got.dtype).float()).abs().max())
            if not worst <= 0:
                raise ModelError(
                    f"{directory}: a reloaded weight must equal the one that was made, {name} differs by {worst:g}. Do not use these files."
                )


@checked()
def load(directory: str | Path, *, into: nn.Module | None = None, narrow: bool = True) -> nn.Module:
    """A working module from a directory that ``fit`` wrote: our container, one for Transformers, or one for llama.cpp.

    ``into`` is the module to fill (changed in place, also beneath ``torch.compile``) where the architecture is not one of Transformers. Where
    heads or channels were cut, and a trial at export found the outputs equal, the modules really are narrower, and faster; with
    ``narrow=False`` all keep their shapes, and zeros stand where something was cut. A narrow model's config still tells the old head counts.
    Raises ``ModelError``.
    """
    directory = Path(directory)
    if not (directory / FILE).exists():
        return load_other(directory)
    require_inside(directory)
    body = read_body(directory)
    if into is None:
        into = _skeleton(directory)
    given, into = into, bare(into)
    shards = Shards(directory)
    make_room(into, body["settled"], stored_shapes(body, shards))
    modules = dict(into.named_modules())
    for name in body["dropped"]:
        if name not in modules or not isinstance(modules.get(name.rpartition(".")[0]), nn.ModuleList):
            raise ModelError(
                f"{directory}: dropped must name blocks of the model, {quoted(repr(name))} is none. Check the module or config."
            )
    _fill(into, shards, body, directory, narrow_groups(body, directory) if narrow else [])
    give_back(modules, body.get("extra", {}), lambda name: shards.read(name).clone(), directory)
    drop_blocks(into, body["dropped"])
    return given.eval()


def _skeleton(directory: Path) -> nn.Module:
    config = unmarked(read_config(directory))
    with Shards(directory) as shards:
        return skeleton(model_class(config, str(directory)), config, stored=len(shards.names()))


def narrow_groups(body: dict[str, Any], directory: Path) -> list[Group]:
    """The groups of cuts that were found equal when narrow; none where the key is missing."""
    try:
        if not isinstance(given := body.get("narrow", []), list):
            raise ValueError("it is no list")
        groups = [Group.from_json(value) for value in given]
        units = [unit for group in groups for unit in group.units]
        if unknown := sorted(set(units) - body["units"].keys()):
            raise ValueError(f"{quoted(repr(unknown[0]))} is no unit")
        if len(set(units)) < len(units):
            raise ValueError("a unit is named twice")
        return groups
    except ValueError as error:
        raise narrow_error(directory, error) from None


def narrow_error(directory: Path, why: object) -> ModelError:
    """What to raise where the description's narrow groups do not suit the model."""
    return ModelError(f"{directory}: narrow must list groups of this model's cut units ({why}). Load with narrow=False, or write it anew.")


def _record(directory: Path, groups: list[Group]) -> None:
    """Note in the description which groups may be narrow."""
    path = directory / FILE
    body = json.loads(path.read_text(encoding="utf-8")) | {"narrow": [group.to_json() for group in groups]}
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)


def read_body(directory: Path) -> dict[str, Any]:
    """A container's own description. Raises ``ModelError``."""
    path = directory / FILE
    try:
        body = read_json(path)
        if body["format"] != FORMAT or body["version"] != VERSION:
            raise ValueError(f"is {quoted(repr(body['format']))} {quoted(repr(body['version']))}, not {FORMAT} {VERSION}")
        if (
            not isinstance(body["units"], dict)
            or not isinstance(body["dropped"], list)
            or not all(isinstance(n, str) for n in body["dropped"])
        ):
            raise ValueError("units or dropped are malformed")
        if not isinstance(body.setdefault("settled", {}), dict):
            raise ValueError("settled is malformed")
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: must be the container's own description ({error}). Write the files anew.") from None
    return body


def stored_shapes(body: dict[str, Any], shards: Shards) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights that the module it was written from computed, and that stand for themselves here."""
    found = {name: shards.entry(name).shape for name in body["settled"] if name in shards.names()}
    for name in body["settled"].keys() & body["units"].keys():  # a computed weight is whole, and named as its parameter is
        found[name] = described_unit(name, body["units"][name], shards.directory).stored_shape
    return found


def _fill(module: nn.Module, shards: Shards, body: dict[str, Any], directory: Path, groups: list[Group]) -> None:
    parts: dict[str, list[str]] = {}
    for name in shards.names():
        owner, _, part = name.rpartition(":")
        parts.setdefault(owner, []).append(part if owner else name)
    take_plainly(module)
    modules, narrow = dict(module.named_modules()), {unit for group in groups for unit in group.units}
    treated: dict[str, torch.Tensor] = {}
    experts: dict[str, set[int]] = {}
    incisions: list[Incision] = []
    held = shared.read(shards)
    for name, described in body["units"].items():
        unit = described_unit(name, described, directory)
        check_place(unit, modules, experts.setdefault(unit.parameter, set()), directory)
        form = shared.restored(described["form"], {part: shards.read(f"{name}:{part}") for part in parts.get(name, [])}, held)
        take_as(unit, form.inner if name in narrow and isinstance(form, Cut) else form, modules, directory)
        if name in narrow:
            incisions.append(resized(unit, form, modules, directory))
            treated[unit.parameter] = incisions[-1].narrow.stored(incisions[-1].matrix(form))
        elif unit.expert is None:
            treated[unit.parameter] = unit.stored(form.dense())
        else:
            stack(treated, unit, form.dense())
    for name in treated:
        if experts[name]:
            require_experts(treated, name, len(experts[name]), directory)
    given = treated | {name: shards.read(name) for name in parts.get("", [])}
    for incision in incisions:
        if (bias := f"{incision.unit.module}.bias") in given:
            given[bias] = incision.bias(given[bias])
    assign(module, given, body["dropped"], directory)
    try:
        for group in groups:
            put_attributes(modules, group)
    except ValueError as error:
        raise narrow_error(directory, error) from None


def resized(unit: Unit, form: Form, modules: Mapping[str, nn.Module], directory: Path) -> Incision:
    """Make room for what remains of a narrow unit."""
    incision, owner = Incision.of(unit, form), modules.get(unit.module)
    if incision is None or owner is None or not unit.parameter.endswith(".weight") or not fits(owner, incision):
        raise narrow_error(directory, f"{unit.name} is no cut of a linear module")
    resize(owner, incision)
    return incision


def check_place(unit: Unit, modules: Mapping[str, nn.Module], experts: set[int], directory: Path) -> None:
    """Raise ``ModelError`` unless the model has this weight, or a stack with this expert, not yet in ``experts``: before any of it is made."""
    owner, _, attribute = unit.parameter.rpartition(".")
    held = modules[owner]._parameters.get(attribute) if owner in modules else None
    slices = len(held) if held is not None and held.ndim else 0
    if held is None or tuple(held.shape) != unit.stored_shape:
        raise ModelError(f"{directory}: {quoted(unit.name)} must be a weight of the model, is not. Check the module or config.")
    if unit.expert is not None and (type(unit.expert) is not int or not 0 <= unit.expert < slices or unit.expert in experts):
        raise ModelError(f"{directory}: {quoted(unit.name)} must be one slice of a stack of the model, is not. Check the module or config.")
    experts |= set() if unit.expert is None else {unit.expert}


def stack(treated: dict[str, torch.Tensor], unit: Unit, matrix: torch.Tensor) -> None:
    """Put one expert into its stack."""
    assert unit.expert is not None
    treated.setdefault(unit.parameter, torch.empty(unit.stored_shape, dtype=matrix.dtype))[unit.expert] = unit.stored(matrix)


def require_experts(treated: Mapping[str, torch.Tensor], name: str, came: int, directory: Path) -> None:
    """Raise ``ModelError`` where a stack is not full."""
    if came < len(treated[name]):
        raise ModelError(f"{directory}: must hold every expert of {name}, {came} came. Write the files anew.")


def described_unit(name: str, described: dict[str, Any], directory: Path) -> Unit:
    """A unit as the description tells it. Raises ``ModelError``."""
    try:
        form, stored = described["form"], tuple(int(size) for size in described["stored_shape"])
        unit = Unit(
            name=name, parameter=described["parameter"], module=described["parameter"].rpartition(".")[0], kind="linear",
            shape=(int(form["shape"][0]), int(form["shape"][1])), stored_shape=stored, dtype=torch.float32, expert=described["expert"],
            transposed=bool(described["transposed"]),
        )  # fmt: skip
        if math.prod(stored[1:] if unit.expert is not None else stored) != unit.size:
            raise ValueError(f"{unit.shape} is stored as {stored}")
        return unit
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise ModelError(f"{directory}: unit {quoted(name)} must be described in full ({error}). Write the files anew.") from None
