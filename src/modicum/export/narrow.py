"""Modules that really are narrower where rows and columns were cut, and the trial that says where this changes nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from modicum.core.errors import ModelError, quoted
from modicum.core.unit import Axis, Site, Unit
from modicum.data.splits import Batch, some_rows
from modicum.export.precise import precise_output, relative_gap
from modicum.forms import Cut, Form, Sum
from modicum.sweep.coupling import kept_rows

# Where attention modules keep how many heads they have, and the width of all heads together.
COUNTS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "num_key_value_heads", "num_kv_heads", "n_kv_heads")
WIDTHS = ("all_head_size", "split_size", "inner_dim", "embed_dim", "hidden_size")
# Largest relative difference of the outputs, in float32, that is rounding; a wrong row changes them a hundred times as much.
TOLERANCE = 1e-4
_ROWS, _TOKENS = 2, 32


@dataclass(frozen=True)
class Group:
    """Units whose cut rows and columns vanish together, and the counts of the modules around them that follow: module → attribute → value."""

    units: tuple[str, ...]
    attributes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """JSON value."""
        return {"units": list(self.units), "attributes": {module: dict(values) for module, values in self.attributes.items()}}

    @classmethod
    def from_json(cls, value: Any) -> Group:
        """Inverse of ``to_json``. Raises ``ValueError`` where it is anything else."""
        if not isinstance(value, dict) or value.keys() - {"units", "attributes"}:
            raise ValueError(f"{quoted(repr(value))} is no group")
        units, attributes = value.get("units"), value.get("attributes", {})
        if not isinstance(units, list) or not units or not all(isinstance(unit, str) for unit in units):
            raise ValueError("units must be a list of names")
        if not isinstance(attributes, dict) or not all(_counts(values) for values in attributes.values()):
            raise ValueError("attributes must map modules to head counts")
        return cls(tuple(units), attributes)


def _counts(values: Any) -> bool:
    return isinstance(values, dict) and all(name in (*COUNTS, *WIDTHS) and type(value) is int for name, value in values.items())


@dataclass(frozen=True)
class Incision:
    """What cuts leave of one unit: boolean masks over its rows and its columns, None where all remain."""

    unit: Unit
    rows: torch.Tensor | None
    columns: torch.Tensor | None

    @classmethod
    def of(cls, unit: Unit, form: Form) -> Incision | None:
        """The incision of a form that cuts a unit which a linear module holds for itself; None for any other."""
        first = form.parts[0] if isinstance(form, Sum) else form
        if not isinstance(first, Cut) or unit.expert is not None or unit.aliases or unit.kind not in ("linear", "conv1d"):
            return None
        return cls(unit, first.rows, first.columns)

    @classmethod
    def along(cls, unit: Unit, axis: Axis, kept: Sequence[int]) -> Incision:
        """The incision that leaves the groups ``kept`` of one axis of a coupled cut."""
        rows = axis.side == "rows"
        mask = kept_rows(axis, list(kept), unit.shape[0 if rows else 1])
        return cls(unit, mask if rows else None, None if rows else mask)

    @classmethod
    def of_cuts(cls, members: Sequence[Site], kept: Mapping[str, Sequence[int]]) -> dict[str, Incision]:
        """By unit, the incisions that leave the groups ``kept`` of coupled cuts, by their names."""
        first: dict[tuple[Any, ...], Incision] = {}  # blocks that are alike share their groups, and what is kept of them
        found = {}
        for member in members:
            for unit, axis in zip(member.units, member.axes):
                key = (id(axis.groups), axis.side, id(kept[member.name]), unit.shape)
                if key not in first:
                    first[key] = cls.along(unit, axis, kept[member.name])
                found[unit.name] = replace(first[key], unit=unit)
        return found

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns that remain."""
        rows, columns = (size if mask is None else int(mask.sum()) for mask, size in zip((self.rows, self.columns), self.unit.shape))
        return rows, columns

    @property
    def narrow(self) -> Unit:
        """The unit as it is once it is narrower."""
        return replace(self.unit, shape=self.shape, stored_shape=self.shape[::-1] if self.unit.transposed else self.shape)

    def matrix(self, form: Form) -> torch.Tensor:
        """What remains of a form's value."""
        return form.inner.dense() if isinstance(form, Cut) else self.pick(form.dense())

    def pick(self, matrix: torch.Tensor) -> torch.Tensor:
        """What remains of a (rows, columns) matrix."""
        matrix = matrix if self.columns is None else matrix[:, self.columns]
        return matrix if self.rows is None else matrix[self.rows]

    def bias(self, value: torch.Tensor) -> torch.Tensor:
        """What remains of the (rows,) bias of the unit's module."""
        return value if self.rows is None else value[self.rows]


def fits(owner: Any, incision: Incision) -> bool:
    """Whether a module is a linear one of the unit's shape: only those can be made narrower."""
    kind = isinstance(owner, nn.Linear) or type(owner).__name__ == "Conv1D"
    weight = owner._parameters.get("weight") if kind else None
    return weight is not None and tuple(weight.shape) == incision.unit.stored_shape


def resize(owner: nn.Module, incision: Incision) -> None:
    """Give a linear module the shape that remains; its weight and bias are on ``meta`` until they are set."""
    rows, columns = incision.shape
    if isinstance(owner, nn.Linear):
        owner.in_features, owner.out_features = columns, rows
    else:
        owner.nx, owner.nf = columns, rows  # type: ignore[assignment]
    for name, shape in (("weight", incision.narrow.stored_shape), ("bias", (rows,))):
        held = owner._parameters.get(name)
        if held is not None:
            owner._parameters[name] = nn.Parameter(held.new_empty(shape, device="meta"), requires_grad=False)


def put_attributes(modules: Mapping[str, nn.Module], group: Group) -> None:
    """Set the counts that follow a group. Raises ``ValueError`` where a module has none that large."""
    for name, values in group.attributes.items():
        if name not in modules:
            raise ValueError(f"module {quoted(repr(name))} is not in the model")
        for attribute, value in values.items():
            before = vars(modules[name]).get(attribute)
            if type(before) is not int or not 1 <= value <= before:
                raise ValueError(f"{name}.{attribute} is {before}, {value} cannot follow")
            setattr(modules[name], attribute, value)


# Which units belong together


def group_units(incisions: Mapping[str, Incision], order: Sequence[str]) -> list[Group]:
    """Units in call order, split after each whose columns are cut and whose rows are not: there a coupled cut ends.

    Cuts of rows that nothing ends are in no group.
    """
    groups, open_units = [], []
    for name in order:
        if name in incisions:
            open_units.append(name)
            if incisions[name].columns is not None and incisions[name].rows is None:
                groups.append(Group(tuple(open_units)))
                open_units = []
    return groups


def _ways(group: Group, modules: Mapping[str, nn.Module], incisions: Mapping[str, Incision]) -> list[Group]:
    """The group with what may have to follow it: the head counts, the heads' width too, nothing. Always three, some may be alike."""
    columns = incisions[group.units[-1]].columns
    assert columns is not None
    parents = sorted({incisions[unit].unit.module.rpartition(".")[0] for unit in group.units})
    counts, widths = ({name: follow(vars(modules[name]), columns) for name in parents} for follow in (_follow_counts, _follow_widths))
    both = {name: {**counts[name], **widths[name]} for name in parents}
    return [replace(group, attributes={name: found for name, found in way.items() if found}) for way in (counts, both, {})]


def _follow_counts(attributes: Mapping[str, Any], columns: torch.Tensor) -> dict[str, int]:
    """Head counts that follow where ``columns`` keeps or drops each head whole."""
    found = {}
    for name in COUNTS:
        count = attributes.get(name)
        if type(count) is int and 0 < count <= len(columns) and len(columns) % count == 0:
            heads = columns.view(count, -1)
            if bool((heads == heads[:, :1]).all()):
                found[name] = int(heads[:, 0].sum())
    return found


def _follow_widths(attributes: Mapping[str, Any], columns: torch.Tensor) -> dict[str, int]:
    return {name: int(columns.sum()) for name in WIDTHS if type(attributes.get(name)) is int and attributes[name] == len(columns)}


# The trial


class Trial:
    """Compares a module whose cut rows and columns are zeros with narrower ones, on a few rows of a batch.

    ``modules`` by the names they had before blocks were dropped. Everything is computed in float32, one module's weights at a time, so that
    rounding stays far below what a wrong row changes.
    """

    def __init__(self, module: nn.Module, modules: Mapping[str, nn.Module], incisions: Mapping[str, Incision], batch: Batch):
        self.module, self.modules, self.incisions, self.batch = module, modules, incisions, _short(batch)
        self.reasons: dict[str, str] = {}
        self.reference = precise_output(module, self.batch)

    def run(self, groups: Sequence[Group]) -> list[Group]:
        """The groups that change nothing when narrow, with what must follow them; ``reasons`` says by consumer why others are left."""
        self.reasons = {group.units[-1]: "its module is no plain linear one" for group in groups if not self._fits(group)}
        ways = [_ways(group, self.modules, self.incisions) for group in groups if self._fits(group)]
        found = self._alike(ways)
        if self._difference(found):
            found = [some[place] for some in ways if (place := self._place(some)) is not None]
        if why := self._difference(found):
            self.reasons |= {group.units[-1]: f"with others: {why}" for group in found}
            return []
        for group in found:
            self.reasons.pop(group.units[-1], None)
        return found

    def _fits(self, group: Group) -> bool:
        return all(fits(self.modules.get(self.incisions[unit].unit.module), self.incisions[unit]) for unit in group.units)

    def _alike(self, ways: Sequence[Sequence[Group]]) -> list[Group]:
        """Groups whose names differ in numbers alone are taken to behave alike: one of them is tried, where it fails one more."""
        kinds: dict[tuple[str, ...], list[Sequence[Group]]] = {}
        for some in ways:
            kinds.setdefault(tuple(re.sub(r"\d+", "#", unit) for unit in some[0].units), []).append(some)
        found = []
        for members in kinds.values():
            place = next((place for some in members[:2] if (place := self._place(some)) is not None), None)
            if place is None:
                self.reasons |= {some[0].units[-1]: self.reasons[members[0][0].units[-1]] for some in members}
            else:
                found += [some[place] for some in members]
        return found

    def _place(self, ways: Sequence[Group]) -> int | None:
        """Which way changes nothing, on its own; where none does, why is noted."""
        reasons = []
        for place, way in enumerate(ways):
            if way not in ways[:place]:
                reasons.append(self._difference([way]))
                if not reasons[-1]:
                    return place
        self.reasons[ways[0].units[-1]] = reasons[0]
        return None

    def _difference(self, groups: Sequence[Group]) -> str:
        """What changes when the groups are narrow, or an empty string."""
        try:
            with narrowed(self.modules, self.incisions, groups):
                output = precise_output(self.module, self.batch) if groups else self.reference
        except Exception as error:  # whatever a model's own forward raises at shapes it was not made for
            return f"its forward refuses ({quoted(error, 120)})"
        if [part.shape for part in output] != [part.shape for part in self.reference]:
            return "outputs have another shape"
        gap = relative_gap(output, self.reference)
        return "" if gap <= TOLERANCE else f"outputs differ by {gap:.2g}"


def _short(batch: Batch) -> Batch:
    """A few rows, of a few tokens where all tensors are tokens by rows."""
    rows = some_rows(batch, 0, _ROWS)
    tensors = list(rows.values()) if isinstance(rows, Mapping) else list(rows)
    tokens = all(tensor.ndim == 2 and not tensor.is_floating_point() and tensor.shape == tensors[0].shape for tensor in tensors)
    if not tokens:
        return rows
    return {name: value[:, :_TOKENS] for name, value in rows.items()} if isinstance(rows, Mapping) else tuple(v[:, :_TOKENS] for v in rows)


@torch.no_grad()
def narrowable(module: nn.Module, sites: Sequence[Site], batch: Batch) -> set[str]:
    """Names of the coupled cuts whose modules can be narrower with nothing changed, before any is chosen.

    Every second group of one cut of each kind (names alike but for numbers) is left out on trial. All weights must be in memory.
    """
    kinds: dict[str, list[Site]] = {}
    for site in sites:
        if len(site.axes[-1].groups) > 1 and not any(unit.aliases for unit in site.units):
            kinds.setdefault(re.sub(r"\d+", "#", " ".join(unit.name for unit in site.units)), []).append(site)
    tried = {members[0].units[-1].name: members for members in kinds.values()}
    modules, incisions = dict(module.named_modules()), dict[str, Incision]()
    for members in tried.values():
        kept = range(0, len(members[0].axes[-1].groups), 2)
        incisions |= {unit.name: Incision.along(unit, axis, kept) for unit, axis in zip(members[0].units, members[0].axes)}
    groups = [Group(tuple(unit.name for unit in members[0].units)) for members in tried.values()]
    with _blanked(modules, [incisions[name] for name in tried]):
        found = Trial(module, modules, incisions, batch).run(groups)
    return {site.name for group in found for site in tried[group.units[-1]]}


@contextmanager
def _blanked(modules: Mapping[str, nn.Module], incisions: Sequence[Incision]) -> Iterator[None]:
    """Inside, the columns that incisions cut are zeros."""
    before = [(modules[incision.unit.module]._parameters, incision) for incision in incisions]
    held = [parameters["weight"] for parameters, _ in before]
    try:
        for parameters, incision in before:
            matrix = incision.unit.matrix(parameters["weight"].detach().clone())  # type: ignore[union-attr]
            assert incision.columns is not None
            matrix[:, ~incision.columns] = 0
            parameters["weight"] = nn.Parameter(incision.unit.stored(matrix), requires_grad=False)
        yield
    finally:
        for (parameters, _), weight in zip(before, held):
            parameters["weight"] = weight


@contextmanager
def narrowed(modules: Mapping[str, nn.Module], incisions: Mapping[str, Incision], groups: Sequence[Group]) -> Iterator[None]:
    """Inside, the modules of the groups' units are narrower."""
    touched = {incisions[unit].unit.module for group in groups for unit in group.units}
    touched |= {name for group in groups for name in group.attributes}
    before = [(modules[name], _numbers(modules[name]), dict(modules[name]._parameters)) for name in touched]
    try:
        for group in groups:
            for unit in group.units:
                _cut(modules[incisions[unit].unit.module], incisions[unit])
            put_attributes(modules, group)
        yield
    finally:
        for owner, numbers, parameters in before:
            vars(owner).update(numbers)
            owner._parameters.update(parameters)


def _numbers(module: nn.Module) -> dict[str, int]:
    return {name: value for name, value in vars(module).items() if type(value) is int}


def _cut(owner: nn.Module, incision: Incision) -> None:
    weight, bias = owner._parameters["weight"], owner._parameters.get("bias")
    assert weight is not None
    resize(owner, incision)
    left = incision.narrow.stored(incision.pick(incision.unit.matrix(weight.detach())))
    owner._parameters["weight"] = nn.Parameter(left, requires_grad=False)
    if bias is not None:
        owner._parameters["bias"] = nn.Parameter(incision.bias(bias.detach()), requires_grad=False)


def dummy(module: nn.Module) -> Batch:
    """A short input that Transformers knows for its own models. Raises ``ModelError`` for others."""
    found = getattr(module, "dummy_inputs", None)
    if not isinstance(found, Mapping):
        raise ModelError("the module knows none. Give a batch.")
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}
