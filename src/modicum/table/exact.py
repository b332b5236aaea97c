"""The exact bytes of what a selection gives, told before anything is made."""

from __future__ import annotations

from modicum.core.option import KEEP, Option
from modicum.core.plan import Picks, Table
from modicum.forms import Form
from modicum.table.findings import DEPTH, GONE, Findings
from modicum.table.sizing import Sizing, level_of
from modicum.table.zeros import remaining_shape


def exact_bytes(sizing: Sizing, table: Table, picks: Picks, findings: Findings) -> int:
    """Bytes of the files a selection gives, header and all, from forms of zeros."""
    forms: dict[str, Form] = {}
    owner = {unit.name: site for site in sizing.cuts.values() for unit in site.units}
    for site in sizing.target.sites():
        text = table.choices[site.name][picks[site.name]].option
        if text == GONE:
            continue
        option, parent = Option.parse(text), table.parents.get(site.name, DEPTH)
        level = level_of(table.choices[parent][picks[parent]].option) if parent != DEPTH else KEEP
        for unit in site.units:
            shape = None
            if level != KEEP:
                cut = owner[unit.name]
                shape = remaining_shape(cut, unit, findings.cuts[cut.name][level].kept)
            if option.steps or shape is not None:
                forms[unit.name] = sizing.form(option, unit, shape)
    span = table.choices[DEPTH][picks[DEPTH]].option if DEPTH in picks else KEEP
    dropped = frozenset(findings.spans[span].blocks) if span != KEEP else frozenset()
    forms = {name: form for name, form in forms.items() if not sizing.script.home(name, dropped)}
    return sizing.target.layout(forms, {}, dropped).nbytes()
