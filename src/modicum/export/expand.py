"""Codes of our own container as plain whole numbers under one scale per row, which other runtimes load.

A step per column is a factor on the input, so it moves into what makes the input: a norm's weight, the rows of the projection before
(``sweep/makers.py``). All factors are powers of two; one and a half octaves are a three in the numbers, and what cannot move (of columns that one row
makes, of an input that nothing makes) is shifted into the numbers too, as far as eight bits hold them. So every weight, times the factor on its
input, is the one in the container to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from modicum.core.tensorfile import Shards
from modicum.core.unit import Site, Unit
from modicum.export import shared
from modicum.export.container import described_unit, read_body
from modicum.forms import Coded, Cut, Dense, Float8, Form, Integer
from modicum.forms.coded import steps
from modicum.models.model import Model
from modicum.sweep.makers import Maker, raised

# Bits of whole numbers that all readers agree on; the fewest that hold a site's are taken.
_BITS = (4, 8)


@dataclass
class Expansion:
    """What a container's forms become: new ``forms`` by unit, ``parameters`` of the model that take a factor, units that are ``refused`` and why, and
    how many sites' steps went where.
    """

    forms: dict[str, Form] = field(default_factory=dict)
    parameters: dict[str, torch.Tensor] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    moved: int = 0
    shifted: int = 0


def coded_stages(forms: Mapping[str, Form], stages: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Stages of which a unit is in codes whose columns have steps that differ."""
    return [stage for stage in stages if any(_unlike(forms.get(name)) for name in stage)]


def expand(
    model: Model, forms: Mapping[str, Form], stages: Sequence[tuple[str, ...]], makers: Mapping[tuple[str, ...], Maker],
    sites: Sequence[Site], refusal: Callable[[Unit], str],
) -> Expansion:  # fmt: skip
    """Forms for Transformers of those in a container; what cannot be one there is ``refused`` and stands as it was."""
    found = _Expanding(model, forms, refusal)
    for stage in stages:
        found.place(stage, makers.get(stage))
    for site in sites:
        found.site([unit for unit in site.units if unit.name in forms])
    for name in forms.keys() - {unit.name for site in sites for unit in site.units}:
        found.site([model.units[name]])
    found.parameters()
    return found.result


class _Expanding:
    """``rows`` and ``columns`` are the powers of two by which a unit's matrix is multiplied, for each row and column."""

    def __init__(self, model: Model, forms: Mapping[str, Form], refusal: Callable[[Unit], str]):
        self.model, self.forms, self.refusal = model, forms, refusal
        self.rows: dict[str, torch.Tensor] = {}
        self.columns: dict[str, torch.Tensor] = {}
        self.entries: dict[str, torch.Tensor] = {}
        self.result = Expansion()

    def place(self, stage: tuple[str, ...], maker: Maker | None) -> None:
        """Decide where the steps of an input's columns go."""
        leader = max((name for name in stage if _unlike(self.forms.get(name))), key=lambda name: self.model.units[name].size)
        form, others = self.forms[leader], [self.forms.get(name) for name in stage]
        assert isinstance(form, Coded)
        # Of an integer on groups of columns, or of floats, no factor on a column can be told.
        if maker is None or not all(isinstance(other, Coded | Dense | None) for other in others):
            self.result.shifted += 1
            return
        wanted = _whole(form)[1]
        rows = torch.full((int(maker.rows.max()) + 1,), int(wanted.max())).scatter_reduce(0, maker.rows, wanted, "amin")
        rows -= int(rows.median())
        self.columns |= dict.fromkeys(stage, -rows[maker.rows])
        for name in maker.parameters:
            unit = next((unit for unit in self.model.units.values() if unit.parameter == name), None)
            (self.rows if unit is not None else self.entries)[name if unit is None else unit.name] = rows
        self.result.moved += 1

    def site(self, units: Sequence[Unit]) -> None:
        """The forms of units that go together: all as whole numbers of as many bits, or refused together."""
        coded = [unit for unit in units if isinstance(self.forms[unit.name], Coded)]
        rest = [unit for unit in units if unit not in coded]
        self.result.forms |= {unit.name: self._followed(unit) for unit in rest}
        tried = {unit.name: self._made(unit) for unit in coded}
        made = {name: one for name, one in tried.items() if not isinstance(one, str)}
        whys = {name: one for name, one in tried.items() if isinstance(one, str)}
        if coded and any(not isinstance(self.forms[unit.name], Dense) for unit in rest):
            whys = dict.fromkeys(tried, "it shares its input with weights on other grids") | whys
        if whys:
            beside = f"beside {next(iter(whys))}: {next(iter(whys.values()))}"
            self.result.refused |= {unit.name: whys.get(unit.name, beside) for unit in coded}
            self.result.forms |= {unit.name: self._scaled(unit, Dense(self.forms[unit.name].dense())) for unit in coded}
            return
        most = max((bits for bits, _, _ in made.values()), default=0)
        for name, (_, numbers, scale) in made.items():
            self.result.forms[name] = Integer((numbers + 2 ** (most - 1)).to(torch.uint8), scale, None, most, 0)

    def _made(self, unit: Unit) -> tuple[int, torch.Tensor, torch.Tensor] | str:
        """Bits, whole numbers (rows, columns) and scales (rows, 1) of a unit in codes, or why it has none."""
        form = self.forms[unit.name]
        assert isinstance(form, Coded)
        if reason := self.refusal(unit):
            return reason.removeprefix("target: ")
        if form.ladder == "quarters":
            return "an earlier version wrote it, with steps of quarter octaves"
        threes, octaves = _whole(form)
        left = octaves + self.columns.get(unit.name, torch.zeros_like(octaves))
        doubled = bool(form.trellis)  # half steps are whole ones of half the scale
        numbers = (form.halves if doubled else form.codes).long() * threes << (left - left.min()).clamp(max=32)
        bits = next((bits for bits in _BITS if int(numbers.max()) < 2 ** (bits - 1) and int(numbers.min()) >= -(2 ** (bits - 1))), 0)
        if not bits:
            return f"its numbers go up to {int(numbers.abs().max())}, beyond eight bits"
        own = steps(form.raised, form.scale, form.ladder).double()
        rows = torch.ldexp(own, int(left.min()) - doubled + self.rows.get(unit.name, torch.zeros(len(own))))[:, None].to(form.dtype)
        exact = torch.equal((numbers.to(form.dtype) * rows), self._scaled(unit, Dense(form.dense())).dense())
        return (bits, numbers, rows) if exact else f"its scales are no numbers of {str(form.dtype)[6:]}"

    def _followed(self, unit: Unit) -> Form:
        """A form that was not in codes, with the factors that moved to it."""
        form = self.forms[unit.name]
        return self._scaled(unit, form) if unit.name in self.rows.keys() | self.columns.keys() else form

    def _scaled(self, unit: Unit, form: Form) -> Form:
        rows, columns = self.rows.get(unit.name), self.columns.get(unit.name)
        if isinstance(form, Integer | Float8) and columns is None and rows is not None:
            scale = raised(form.scale, None, columns=None, rows=rows)
            return (
                Integer(form.codes, scale, form.zero, form.bits, form.group) if isinstance(form, Integer) else Float8(form.numbers, scale)
            )
        if isinstance(form, Dense):
            return Dense(raised(form.dense(), None, rows=rows, columns=columns))
        return form

    def parameters(self) -> None:
        """Parameters of the model that take a factor themselves: of no unit, or of one that stays as it is."""
        weights, found = self.model.weights, self.result.parameters
        for name, octaves in self.entries.items():
            found[name] = raised(weights.read(name), None, columns=octaves)
        for name in (self.rows.keys() | self.columns.keys()) - self.forms.keys():
            unit = self.model.units[name]
            value = raised(weights.read(unit.parameter), unit, rows=self.rows.get(name), columns=self.columns.get(name))
            found[unit.parameter] = value


def forms_of(directory: Path) -> Iterator[tuple[Unit, Form]]:
    """Every unit that a container describes, and its form. Raises ``ModelError``."""
    units, parts = read_body(directory)["units"], dict[str, list[str]]()
    with Shards(directory) as shards:
        for name in shards.names():
            owner, _, part = name.rpartition(":")
            parts.setdefault(owner, []).append(part)
        held = shared.read(shards)
        for name, described in units.items():
            unit = described_unit(name, described, directory)
            yield unit, shared.restored(described["form"], {part: shards.read(f"{name}:{part}") for part in parts.get(name, [])}, held)


def _unlike(form: Form | None) -> bool:
    return isinstance(form, Coded) and bool((form.columns != form.columns[0]).any())


def _whole(form: Coded) -> tuple[torch.Tensor, torch.Tensor]:
    """By what a column's codes are multiplied, one or three, and the octave of its step then (columns,)."""
    columns = form.columns.long()
    half = columns % 4 == 2
    return torch.where(half, 3, 1), torch.div(columns, 4, rounding_mode="floor") - half.long()


def unheld(forms: Mapping[str, Form], units: Mapping[str, Unit], refusal: Callable[[Unit], str]) -> dict[str, str]:
    """Forms other than codes that the target cannot store, and why."""
    found = {}
    for name, form in forms.items():
        inner = form.inner if isinstance(form, Cut) else form
        if (isinstance(inner, Coded) and not isinstance(form, Cut)) or isinstance(inner, Dense):
            continue
        if not isinstance(inner, Integer | Float8):
            found[name] = f"it is of kind {inner.kind}" + (" under a cut" if isinstance(form, Cut) else "")
        elif isinstance(inner, Integer) and inner.zero is not None:
            found[name] = "it has zero points"
        elif reason := refusal(units[name]):
            found[name] = reason.removeprefix("target: ")
    return found
