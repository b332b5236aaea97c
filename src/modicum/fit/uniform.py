"""One scheme for all that is quantized: what every way to load a result reads right, and what that costs beside a plan of several."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from modicum.core.budget import readable
from modicum.core.errors import SettingError
from modicum.core.option import KEEP, Option
from modicum.core.plan import Choice, Limits, Picks, Table
from modicum.forms import Activated
from modicum.table.findings import GONE
from modicum.table.sizing import Sizing


def by_scheme(sizing: Sizing, table: Table) -> dict[str, Table]:
    """What a table leaves where every weight is kept or has one and the same scheme, by that scheme.

    Schemes that some weight which cannot be kept does not take are left out, and so are those that round inputs, which a loader may leave out.
    """
    known = {site: dict(_schemes(sizing, site, table)) for site in _weights(sizing, table)}
    found = {}
    for scheme in dict.fromkeys(one for schemes in known.values() for one in schemes.values()):
        choices = {
            site: [one for one in held if site not in known or one.option in (KEEP, GONE) or known[site].get(one.option) == scheme]
            for site, held in table.choices.items()
        }
        if all(_stands(choices[site], held) for site, held in table.choices.items()):
            found[scheme] = Table(choices, table.fixed, table.parents, table.facts)
    return found


def _weights(sizing: Sizing, table: Table) -> Iterator[str]:
    return (site.name for site in sizing.target.sites() if site.name in table.choices)


def _schemes(sizing: Sizing, name: str, table: Table) -> Iterator[tuple[str, str]]:
    """Options of a site with the scheme that each is written in."""
    unit = next(site.units[0] for site in sizing.target.sites() if site.name == name)
    for text in {choice.option for choice in table.choices[name]} - {KEEP, GONE}:
        form = sizing.form(Option.parse(text), unit)
        if not isinstance(form, Activated):
            yield text, sizing.target.scheme(form)


def _stands(left: list[Choice], held: list[Choice]) -> bool:
    """Whether a choice is left under every option of the parent."""
    given = lambda choices: {option for choice in choices for option in choice.given}
    return bool(left) and given(left) == given(held)


def least_harmful(found: Mapping[str, Table], limits: Limits, choose: Callable[[Table, Limits], Picks]) -> Table:
    """The table of the scheme of which a selection within the limits is expected to lose least; where none is within them, of the smallest files."""
    within = [table for table in found.values() if table.fits(table.cheapest(limits), limits)]
    if within:
        return min(within, key=lambda table: table.harm(choose(table, limits)))
    return min(found.values(), key=lambda table: table.cost(table.cheapest()))


def restricted(sizing: Sizing, table: Table, limits: Limits, choose: Callable[[Table, Limits], Picks]) -> Table:
    """The table with one scheme for all that is quantized. Raises ``SettingError`` where no scheme is one for all."""
    found = by_scheme(sizing, table)
    if not found:
        raise SettingError(
            f"uniform: one scheme of the menu must fit all that target {sizing.target.name} cannot keep as it is, none does. "
            "Pass fewer rules, or a --group that divides all rows."
        )
    return least_harmful(found, limits, choose)


def sentence(told: Mapping[str, Any], target: str) -> str:
    """What one scheme costs, for people."""
    if not told["scheme"]:
        return f"uniform: nothing was given up for it, every loader of target {target} reads what was chosen."
    said = lambda one: f"forecast to lose {one['forecast']:.3g} in {readable(one['bytes'])}"
    return (
        f"uniform: all that is quantized has one scheme ({told['scheme']}), {said(told)}; a plan of several, which not every loader reads right, is "
        f"{said(told['free'])}."
    )


def words(sizing: Sizing, table: Table, picks: Picks) -> str:
    """The scheme of a selection as people say it; nothing where all is kept, or where loaders read any mixture."""
    if sizing.target.mixes:
        return ""
    schemes = {dict(_schemes(sizing, site, table)).get(table.choices[site][picks[site]].option) for site in _weights(sizing, table)}
    for scheme in schemes - {None}:
        told = json.loads(str(scheme))
        width = told.get("group_size")
        kind = "integers" if told["type"] == "int" else "floats"
        return f"{told['num_bits']}-bit {kind}, a scale for {f'{width} columns' if width else 'a row'}"
    return ""
