"""Rules by layer held against a model and what a target can hold: a slip is told before anything is measured."""

from __future__ import annotations

from collections.abc import Sequence

from modicum.core.errors import SettingError, listed, near
from modicum.core.option import KEEP, Option
from modicum.core.rules import Rule
from modicum.core.unit import Site, Unit
from modicum.export import Target
from modicum.table.menu import Menu, misfit, offered, oversized
from modicum.table.rules import names_of, ruled

# Options that are named as what works instead.
_TOLD = 6


def check_names(rules: Sequence[Rule], units: Sequence[Unit]) -> None:
    """Raise ``SettingError`` for a pattern that means no layer."""
    for rule in rules:
        if not any(rule.matches(names_of(unit)) for unit in units):
            raise SettingError(
                f"set {rule.pattern!r}: must match a layer, matches none. {near(rule.pattern, {unit.module for unit in units})}"
            )


def check_rules(target: Target, menu: Menu, rules: Sequence[Rule]) -> list[str]:
    """What is to be told of rules that do not reach every layer that they mean. Raises ``SettingError`` for what the target cannot hold."""
    if not rules:
        return []
    sites = target.sites()
    for site in sites:
        if (found := menu.rules(site)) and not offered(target, site, menu):
            raise SettingError(_unheld(target, site, menu, found))
    inside = {unit.name: site for site in sites for unit in site.units}
    return [told for rule in rules if (told := _short(target, menu, rule, inside))]


def _short(target: Target, menu: Menu, rule: Rule, inside: dict[str, Site]) -> str:
    """What is to be told of layers that a rule means and does not reach; nothing where there are none, or all stay as they are by the rule."""
    meant = [unit for unit in target.model.units.values() if rule.matches(names_of(unit))]
    dense = [unit for unit in meant if unit.name not in inside]
    if rule.text == KEEP:
        return ""
    if not any(menu.rules(inside[unit.name]) for unit in meant if unit.name in inside):
        first = dense[0] if dense else None
        why = f"{first.module} stays as it is ({target.refusal(first) or 'no option fits'})" if first else "--keep names all of them too"
        raise SettingError(
            f"set {str(rule)!r}: must reach a layer of target {target.name}, reaches none: {why}. Name others{_elsewhere(target)}."
        )
    if not dense:
        return ""
    named = listed(unit.module for unit in dense)
    return f"set {str(rule)!r}: {len(dense)} of the layers that it names stay as they are for target {target.name}: {named}."


def _unheld(target: Target, site: Site, menu: Menu, rules: Sequence[Rule]) -> str:
    """Why rules leave nothing to choose on a site, and what would work."""
    said, left = " and ".join(repr(str(rule)) for rule in rules), ruled(menu, rules)
    group = next((why for option in left if (why := misfit(target, [site], option))), "")
    if group:
        return f"set {said}: target {target.name} cannot hold it on {site.name}, {group}."
    if why := next((why for option in left if (why := oversized(site, target.adapt(site, option)))), ""):
        return f"set {said}: cannot be: {why}"
    known = list(offered(target, site, Menu(menu, suits=menu.suits)))
    what = "no option of the menu has these settings" if not left else f"target {target.name} cannot hold it there"
    more = f" and {len(known) - _TOLD} more" if len(known) > _TOLD else ""
    return f"set {said}: must leave an option for {site.name}, leaves none: {what}. It can have {', '.join(known[:_TOLD])}{more}{_elsewhere(target)}."


def _elsewhere(target: Target) -> str:
    return "" if target.name == "modicum" else ", or pass --target modicum"


def chosen_by(target: Target, site: Site, method: Option, menu: Menu) -> Option | None:
    """What stands on a site where one method is asked for everywhere: the method, or what rules make of it there."""
    if not menu.rules(site):
        return target.adapt(site, method)
    return next(iter(offered(target, site, menu).values()), None)
