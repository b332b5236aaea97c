"""Harm tables: one for each target, menu and runtime, made of what one measurement found."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from modicum.core.errors import SettingError
from modicum.core.once import Once
from modicum.core.option import KEEP, Option
from modicum.core.plan import Choice, Plan, Table
from modicum.core.unit import Site, Unit
from modicum.drop._family import Spanner
from modicum.export import Target
from modicum.export._family import DIGITS
from modicum.forms import Form
from modicum.sweep import Script
from modicum.table.findings import DEPTH, GONE, Findings, Structural, kind_of, prior_of
from modicum.table.menu import levels, offered, spanners, under_rules
from modicum.table.zeros import lost_of, remaining_shape, shadow, zeros

# Between the choice of a cut that binds several blocks and the change of depth it stands beside.
_BESIDE = " beside "


# Lengths of spans that are tried, up to a third of the blocks.
SPAN_LENGTHS = (1, 2, 3, 4, 6, 8)


def level_of(option: str) -> str:
    """The option of a cut in a choice's text, whatever change of depth it stands beside."""
    return option.partition(_BESIDE)[0]


Priced = Callable[[Unit, Form], tuple[int, float]]


@dataclass(frozen=True)
class _Variant:
    """A choice of a cut: its text, what is ``left`` of each member that is there, and the choices of depth it stands under."""

    option: str
    left: Mapping[str, Structural]
    given: tuple[str, ...]

    @property
    def harm(self) -> float:
        """Of all members that are there."""
        return sum(found.harm for found in self.left.values())


@dataclass
class Sizing:
    """Makes tables for one target: bytes from forms of zeros, harms from ``findings`` (or none yet, for what is within reach).

    ``cuts`` are the model's coupled cuts by name, ``kept`` says which sites stay as they are. ``runtime`` gives the memory and seconds that a
    form takes in the target's runtime, ``block_seconds`` what a block takes there outside its units; ``macs`` and ``block_macs`` multiply-adds.
    """

    target: Target
    menu: Sequence[Option]
    cuts: Mapping[str, Site] = field(default_factory=dict)
    kept: Callable[[Site], bool] = lambda site: False
    runtime: Priced = lambda unit, form: (form.shape[0] * form.shape[1] * form.dtype.itemsize, 0.0)
    block_seconds: Callable[[str], float] = lambda block: 0.0
    macs: Callable[[Unit, Form], float] = lambda unit, form: 0.0
    block_macs: Callable[[str], float] = lambda block: 0.0
    scales: Mapping[str, float] = field(default_factory=dict)
    _forms: dict[Any, Form] = field(default_factory=dict)
    _lost: Once = field(default_factory=lambda: Once(lost_of))

    def table(self, findings: Findings | None = None) -> Table:
        """The table of every choice on every site, structural sites first. Raises ``SettingError`` where a site has no choice."""
        sites, self.scales = self.target.sites(), findings.scales if findings is not None else {}
        inside = _inside(self.target, sites)
        table = Table(fixed=self._fixed(sites, inside))
        depth = dict(self._depth(findings))
        if len(depth) > 1:
            table.choices[DEPTH] = [self._left_out(text, found, sites, inside) for text, found in depth.items()]
        else:
            depth = {}
        known = {name: dict(self._levels(members, findings)) for name, members in self.groups.items()}
        cuts = {name: self._variants(self.groups[name], found, depth) for name, found in known.items() if len(found) > 1}
        for name, variants in cuts.items():
            self._add_cut(table, name, variants, depth)
        owner = {unit.name: name for name in cuts for member in self.groups[name] for unit in member.units}
        for site in sites:
            self._add(table, site, findings, depth, owner.get(site.units[0].name, ""), cuts)
        if findings is not None:
            table.facts = {site.name: _summed([findings.facts.get(unit.name, {}) for unit in site.units], site) for site in sites}
        return table

    def plan(self, table: Table, picks: Mapping[str, int], findings: Findings) -> Plan:
        """The plan of a selection: options by site, and the groups that cuts keep."""
        plan = Plan(self.target.name)
        span = table.choices[DEPTH][picks[DEPTH]].option if DEPTH in picks else KEEP
        gone = findings.spans[span].blocks if span != KEEP else []
        for site, index in picks.items():
            text = level_of(table.choices[site][index].option)
            for member in self.groups.get(site, ()):
                if text not in (KEEP, GONE) and not Script.home(member.units[0].name, gone):
                    plan.cuts[member.name] = findings.cuts[member.name][text].kept
                    plan.options[member.name] = text
            if text != GONE and site not in self.groups and not (text == KEEP and site == DEPTH):
                plan.options[site] = text
        return plan

    # Depth

    def _depth(self, findings: Findings | None) -> Iterator[tuple[str, Structural]]:
        yield KEEP, Structural([], [], 0.0)
        if findings is not None:
            steps = {str(step).split(" ")[0]: step for step in spanners(self.menu)}
            spans = {
                text: found for text, found in findings.spans.items()
                if (step := steps.get(text.split(" ")[0])) and step.spares(self.script, found.blocks)
            }  # fmt: skip
        else:
            spans = {text: Structural([], blocks, 0.0) for text, blocks in span_lengths(self.script, spanners(self.menu))}
        yield from ((text, found) for text, found in spans.items() if not self.target.holds(found.change()))

    @property
    def script(self) -> Script:
        """The model's script."""
        return self.target.script

    def _left_out(self, text: str, found: Structural, sites: Sequence[Site], inside: Collection[str]) -> Choice:
        """A depth choice; what lies in its blocks beside the sites is saved with them."""
        model = self.target.model
        treated = {unit.parameter for site in sites for unit in site.units}
        rest = [name for block in found.blocks for name in model.blocks[block].parameters if name not in treated]
        held = [model.weights.held(name) for name in rest]
        sizes = sum(value.numel() * model.weights.dtype(name).itemsize for value, name in zip(held, rest))
        saved = self.target.fixed_bytes(inside) - self.target.fixed_bytes(inside, frozenset(found.blocks)) if rest else 0
        return Choice(
            text,
            -saved,
            -sum(value.numel() for value in held),
            found.harm,
            -sizes,
            -sum(self.block_seconds(block) for block in found.blocks),
            macs=-sum(self.block_macs(block) for block in found.blocks),
        )

    # Cuts

    @cached_property
    def groups(self) -> dict[str, tuple[Site, ...]]:
        """Coupled cuts that one choice binds, by its name: those whose units' sites may change, by no rule of their own, and lie within them.

        A unit belongs to the first cut that names it.
        """
        home = {unit.name: site for site in self.target.sites() for unit in site.units}
        taken: set[str] = set()
        found = {}
        for name, cut in self.cuts.items():
            names = {unit.name for unit in cut.units}
            sites = [home[unit] for unit in names if unit in home]
            inside = len(sites) == len(names) and all(unit.name in names for site in sites for unit in site.units)
            if inside and not names & taken and not any(self.kept(site) or under_rules(self.menu, site) for site in sites):
                taken |= names
                found[name] = cut
        return self.target.together(found)

    def _levels(self, members: Sequence[Site], findings: Findings | None) -> Iterator[tuple[str, dict[str, Structural]]]:
        """Options that cut all members, with what they leave of each."""
        yield KEEP, {member.name: Structural([], [], 0.0) for member in members}
        for text, step in levels(self.target, members[0], self.menu).items():
            counts = {member.name: len(member.axes[-1].groups) for member in members}
            left = {count: step.kept(range(count)) for count in set(counts.values())}
            kept = {name: left[count] for name, count in counts.items()}
            whole = any(len(kept[name]) == count for name, count in counts.items())
            if whole or not self.target.narrows(members, kept):
                continue
            if findings is None:
                yield text, {name: Structural(groups, [], 0.0) for name, groups in kept.items()}
            elif all(text in findings.cuts.get(name, {}) for name in kept):
                yield text, {name: findings.cuts[name][text] for name in kept}

    def _variants(
        self, members: Sequence[Site], options: Mapping[str, Mapping[str, Structural]], depth: Mapping[str, Structural]
    ) -> list[_Variant]:  # fmt: skip
        """Every option of a cut under every change of depth that leaves something of it."""
        classes: dict[frozenset[str], tuple[str, ...]] = {}
        for text, span in (depth or {KEEP: Structural([], [], 0.0)}).items():
            gone = frozenset(member.name for member in members if Script.home(member.units[0].name, span.blocks))
            classes[gone] = (*classes.get(gone, ()), text)
        found = []
        for gone, given in classes.items():
            beside = f"{_BESIDE}{given[0]}" if gone else ""
            if len(gone) == len(members):
                found.append(_Variant(GONE, {}, given))
                continue
            for text, left in options.items():
                found.append(_Variant(f"{text}{beside}", {name: one for name, one in left.items() if name not in gone}, given))
        return found

    def _add_cut(self, table: Table, name: str, variants: Sequence[_Variant], depth: Mapping[str, Structural]) -> None:
        scale = lambda text: self._scale(name, text, prior_of(kind_of(name, text)))
        table.choices[name] = [
            Choice(one.option, 0, 0, one.harm * scale(level_of(one.option)), given=one.given if depth else ()) for one in variants
        ]
        if depth:
            table.parents[name] = DEPTH

    # Weights

    def _add(
        self, table: Table, site: Site, findings: Findings | None, depth: Mapping[str, Structural], cut: str,
        cuts: Mapping[str, Sequence[_Variant]],
    ) -> None:  # fmt: skip
        options = offered(self.target, site, self.menu)
        options = {text: option for text, option in options.items() if findings is None or findings.know(site, text)}
        if self.kept(site):
            options = {text: option for text, option in options.items() if text == KEEP} or options
        if not options:
            widths = ", ".join(str(width) for width in sorted({unit.shape[1] for unit in site.units}))
            raise SettingError(
                f"{site.name}: at least one option of the menu must fit target {self.target.name}, none does for rows of {widths}. "
                "Pass a --group that divides them."
            )
        choices: list[Choice] = []
        if cut:
            table.parents[site.name] = cut
            (member,) = (member for member in self.groups[cut] if site.units[0] in member.units)
            remaining: dict[str, list[_Variant]] = {}
            for variant in cuts[cut]:
                remaining.setdefault(level_of(variant.option) if member.name in variant.left else GONE, []).append(variant)
            for level, variants in remaining.items():
                given = tuple(variant.option for variant in variants)
                choices += self._under(site, options, findings, member, level, variants[0].left, given)
        else:
            for units, given in self._remaining(site, depth).items():
                choices += self._standing(site, units, options, findings, given)
            if depth:
                table.parents[site.name] = DEPTH
        table.choices[site.name] = choices

    @staticmethod
    def _remaining(site: Site, depth: Mapping[str, Structural]) -> dict[tuple[Unit, ...], tuple[str, ...]]:
        """Depth options by the units of the site that remain under them."""
        found: dict[tuple[Unit, ...], tuple[str, ...]] = {}
        for text, span in (depth or {KEEP: Structural([], [], 0.0)}).items():
            left = tuple(unit for unit in site.units if not Script.home(unit.name, span.blocks))
            found[left] = (*found.get(left, ()), text)
        return found if depth else {site.units: ()}

    def _standing(
        self, site: Site, units: tuple[Unit, ...], options: Mapping[str, Option], findings: Findings | None, given: tuple[str, ...]
    ) -> Iterator[Choice]:
        if not units:
            yield Choice(GONE, 0, 0, 0.0, given=given)
            return
        for text, option in options.items():
            yield self._choice(site.name, text, [(unit, self.form(option, unit)) for unit in units], findings, "", given)

    def _under(
        self, site: Site, options: Mapping[str, Option], findings: Findings | None, cut: Site, level: str, left: Mapping[str, Structural],
        given: tuple[str, ...],
    ) -> Iterator[Choice]:  # fmt: skip
        if level in (KEEP, GONE):
            yield from self._standing(site, site.units if level == KEEP else (), options, findings, given)
            return
        shapes = {unit: remaining_shape(cut, unit, left[cut.name].kept, self._lost) for unit in site.units}
        narrow = replace(site, units=tuple(replace(unit, shape=shape) for unit, shape in shapes.items()))
        for text, option in options.items():
            whole = all(0 not in shape for shape in shapes.values())
            alone = sum(not step.wraps for step in option.steps)
            if not option.steps or (alone == 1 and whole and self.target.adapt(narrow, option) == option):
                forms = [(unit, self.form(option, unit, shape)) for unit, shape in shapes.items()]
                yield self._choice(site.name, text, forms, findings, level, given)

    def _scale(self, site: str, text: str, prior: float = 1.0) -> float:
        return self.scales.get(kind_of(site, text), prior)

    def _choice(
        self, site: str, text: str, forms: Sequence[tuple[Unit, Form]], findings: Findings | None, level: str, given: tuple[str, ...]
    ) -> Choice:
        harm = 0.0 if findings is None else sum(findings.harm(unit.name, text, level) for unit, _ in forms) * self._scale(site, text)
        distance = 0.0 if findings is None or text == KEEP else sum(findings.units[unit.name][text].distance for unit, _ in forms)
        taken = [self.runtime(unit, form) for unit, form in forms]
        return Choice(
            text, sum(self.target.unit_bytes(unit, form, DIGITS) for unit, form in forms), sum(form.values for _, form in forms), harm,
            sum(memory for memory, _ in taken), sum(seconds for _, seconds in taken), given, distance=distance,
            macs=sum(self.macs(unit, form) for unit, form in forms),
        )  # fmt: skip

    # Forms of zeros

    def form(self, option: Option, unit: Unit, shape: tuple[int, int] | None = None) -> Form:
        """A form of zeros with the bytes that ``option`` gives ``unit``, of which a cut leaves ``shape``."""
        key = (str(option), unit.shape, unit.dtype, shape)
        if key not in self._forms:
            self._forms[key] = zeros(option, unit, shape or unit.shape)
        return self._forms[key]

    def _fixed(self, sites: Sequence[Site], inside: Collection[str]) -> dict[str, float]:
        """What no choice changes: everything outside the sites, and the header's frame."""
        target, weights = self.target, self.target.model.weights
        units = {unit.parameter for site in sites for unit in site.units}
        rest = [name for name in weights.names if name not in units]
        values = sum(weights.held(name).numel() for name in rest)
        held = sum(weights.held(name).numel() * weights.dtype(name).itemsize for name in rest)
        return {"bytes": target.fixed_bytes(inside), "values": values, "memory": held, "seconds": 0.0, "macs": 0.0}


def _inside(target: Target, sites: Sequence[Site]) -> set[str]:
    """Names of all that is written of the sites."""
    units = {unit.parameter for site in sites for unit in site.units}
    return {name for site in sites for unit in site.units for name in target.unit_entries(unit, shadow(unit))} | units


def span_lengths(script: Script, steps: Sequence[Spanner]) -> Iterator[tuple[str, list[str]]]:
    """Some span of each length worth trying, for sizes: (option, blocks)."""
    droppable = [name for name in script.blocks if script.may_go([name])]
    for step in steps:
        for count in SPAN_LENGTHS:
            if count <= len(droppable) // 3:
                yield f"{type(step).key().split('/')[1]} count={count}", droppable[-count:]


def _summed(facts: Sequence[Mapping[str, float]], site: Site) -> dict[str, float]:
    """A site's facts from its units': traces add up, the largest eigenvalue leads."""
    found: dict[str, float] = {"weights": float(site.size)}
    if all("trace" in fact for fact in facts):
        found["trace"] = sum(fact["trace"] for fact in facts) / site.size
    if all("eigenvalue" in fact for fact in facts):
        found["eigenvalue"] = max(fact["eigenvalue"] for fact in facts)
    return found
