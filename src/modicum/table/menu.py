"""What may be chosen: the menu a target is offered by default, and what of it fits a site."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, replace
from functools import lru_cache
from typing import Any

from modicum.core.errors import SettingError
from modicum.core.method import Method, registry
from modicum.core.option import Option
from modicum.core.rules import Rule
from modicum.core.unit import Site
from modicum.drop._family import Dropper, SiteCutter, Spanner
from modicum.export import Target
from modicum.quantize._codebook import Quantizer as Codebooks
from modicum.quantize._family import Quantizer
from modicum.repair._family import Repairer
from modicum.table.rules import Ruling, grouped, holds, repaired, ruled

# A low-rank repair stands on options of at most so many bits: above, the next bit is the better buy.
_REPAIRED_BITS = 3


# Columns that share a scale where nobody says how many, the first that a site's rows allow; and what stands beside it at so many bits: where
# bits are few, scales are much of the bytes, and the widths between are those that some readers lack.
_GROUPS = (64, 32)
_BESIDE = {2: (32, 0), 4: (128, 0), 8: (0,)}
# A group of other widths is worth its scales from so many columns on.
_NARROWEST, _WIDEST = 16, 128


class Menu(tuple[Option, ...]):
    """Options, and the rules that hold for a site.

    Of a menu that ``suits``, integers take the groups that suit a site's rows: each stands here once, with the first of ``_GROUPS``. A
    ``declared`` one is what methods say of themselves, not the caller. ``without`` are texts of options, as sites take them, that are left out.
    """

    suits: bool
    declared: bool
    rules: Ruling
    without: frozenset[str]

    def __new__(
        cls, options: Iterable[Option], *, suits: bool = False, declared: bool = False, rules: Ruling = lambda site: (),
        without: frozenset[str] = frozenset(),
    ) -> Menu:  # fmt: skip
        """Options in their order."""
        menu = super().__new__(cls, options)
        menu.suits, menu.declared, menu.rules, menu.without = suits, declared, rules, without
        return menu

    def under(self, rules: Ruling) -> Menu:
        """The same with the rules of each site."""
        return Menu(self, suits=self.suits, declared=self.declared, rules=rules, without=self.without)

    def leaving_out(self, texts: frozenset[str]) -> Menu:
        """The same without some options."""
        return Menu(self, suits=self.suits, declared=self.declared, rules=self.rules, without=texts)

    def rounding(self) -> Menu:
        """The same of options that round weights by themselves alone."""
        kept = (option for option in self if len(steps := [step for step in option.steps if not step.wraps]) == 1 and rounds(steps[0]))
        return Menu(kept, suits=self.suits, declared=self.declared, rules=self.rules, without=self.without)

    def with_rules(self, sites: Iterable[Site]) -> list[Option]:
        """All options that a site may have, those included that only rules give."""
        given = dict.fromkeys(self.rules(site) for site in sites)
        return list(dict.fromkeys([*self, *(option for rules in given if rules for option in ruled(self, rules))]))


def default_menu(target: Target, group: int | None) -> Menu:
    """Every method at the settings it declares in ``menu``, as far as the target's readers agree on it; ``group`` columns share a scale,
    or as many as suit each site's rows.
    """
    options = (
        option for option in everything(group) if target.common(option) and all(step.runtime in ("", target.name) for step in option.steps)
    )
    return Menu(options, suits=group is None, declared=True)


def everything(group: int | None) -> Iterator[Option]:
    """All options that methods declare, repairs on top of the integer options of few bits."""
    steps = [_grouped(cls(**settings), group) for _, cls in sorted(registry().items()) for settings in cls.menu]
    repairs = [step for step in steps if isinstance(step, Repairer)]
    for step in steps:
        if not isinstance(step, Repairer):
            yield Option((step,))
        if isinstance(step, Quantizer) and step.bits <= _REPAIRED_BITS:
            yield from (Option((step, repair)) for repair in repairs)


def _grouped(step: Method, group: int | None) -> Method:
    chosen = _GROUPS[0] if group is None else group
    settings: dict[str, Any] = {"group": chosen} if any(field.name == "group" for field in fields(step)) else {}
    return replace(step, **settings)


def suits(menu: Sequence[Option]) -> bool:
    """Whether integers of a menu take the groups that suit each site."""
    return isinstance(menu, Menu) and menu.suits


def under_rules(menu: Sequence[Option], site: Site) -> bool:
    """Whether rules say what a site may have."""
    return isinstance(menu, Menu) and bool(menu.rules(site))


def groups_of(site: Site) -> list[int]:
    """Groups worth trying on a site's rows, the best first: the usual ones, other widths that divide every row, whole rows."""
    widths = [unit.shape[1] for unit in site.units]
    shared = math.gcd(*widths)
    others = [width for width in range(min(_WIDEST, shared, max(widths) - 1), _NARROWEST - 1, -1) if shared % width == 0]
    return [*_GROUPS, *(width for width in others if width not in _GROUPS), 0]


@lru_cache(4096)
def _in_groups(option: Option, group: int) -> Option:
    """An option whose first step takes another group, whole rows with scales as they are: the same ones are asked for on every site."""
    plain = {} if group > 0 else {"scales": 16}
    return Option((replace(option.steps[0], group=group, **plain), *option.steps[1:]))  # type: ignore[call-arg]


def suited(target: Target, site: Site, option: Option) -> Iterator[Option]:
    """An option of the default menu with the groups that suit a site: the first that can be held, and what stands beside it."""
    first = option.steps[0] if option.steps else None
    if not isinstance(first, Quantizer) or option.steps[-1].wraps:  # where runtimes multiply codes, a row has one scale
        yield option
        return
    at = lambda group: _in_groups(option, group)
    fitting = next((group for group in groups_of(site) if target.adapt(site, at(group)) is not None), first.group)
    beside = _BESIDE.get(first.bits, ()) if len(option.steps) == 1 else ()
    narrowest = min(unit.shape[1] for unit in site.units)
    yield from (at(group) for group in dict.fromkeys([fitting, *beside]) if group < narrowest or group == fitting)


def misfit(target: Target, sites: Iterable[Site], option: Option) -> str:
    """Why the group of an option keeps it off some sites, and which groups do not; nothing where the group is not the cause."""
    first = option.steps[0] if option.steps else None
    if not isinstance(first, Quantizer) or first.group <= 0 or first.scales < 16 or option.steps[-1].wraps:
        return ""
    held = lambda site, group: target.adapt(site, _in_groups(option, group)) is not None
    blocked = [site for site in sites if not held(site, first.group) and held(site, 0)]
    if not blocked:
        return ""
    shared = math.gcd(*(unit.shape[1] for site in blocked for unit in site.units))
    works = [group for group in range(_NARROWEST, min(_WIDEST, shared) + 1) if shared % group == 0]
    widths = ", ".join(map(str, sorted({unit.shape[1] for site in blocked for unit in site.units})))
    return f"group {first.group} does not divide rows of {widths}: use group={', '.join(map(str, [*works, 0]))} (0: whole rows)"


def unheld(target: Target, sites: Iterable[Site], option: Option) -> str:
    """Why a target holds an option on none of its sites, as most of their weights have it, or weights as they are where it has no sites."""
    sizes: Counter[str] = Counter()
    for site in (sites := list(sites)):
        sizes[target.against(site, option)] += site.size
    if sites:
        return sizes.most_common(1)[0][0]
    for unit in target.model.units.values():
        if reason := target.refusal(unit):
            sizes[reason.removeprefix("target: ")] += unit.size
    return f"most weights stay as they are ({sizes.most_common(1)[0][0]})" if sizes else ""


def rounds(step: Method) -> bool:
    """Whether a step rounds a weight by itself."""
    return type(step).family() == "quantize"


def weight_options(menu: Sequence[Option]) -> list[Option]:
    """Options of the menu for the weights themselves."""
    return [option for option in menu if not any(isinstance(step, SiteCutter | Spanner) for step in option.steps)]


def require_choices(options: Iterable[Option]) -> None:
    """Raise ``SettingError`` for an option that no site can have a choice of: what decides over the whole model, or cuts and goes on."""
    for option in options:
        droppers = [step for step in option.steps if isinstance(step, Dropper)]
        if droppers and len(option.steps) > 1:
            apart = " and ".join(repr(str(step)) for step in option.steps)
            raise SettingError(
                f"menu: {str(option)!r} must be one step, for what a cut leaves takes other options anyway. Put {apart} on it."
            )
        if droppers and not isinstance(droppers[0], SiteCutter | Spanner):
            others = " or ".join(name for name, cls in sorted(registry().items()) if issubclass(cls, SiteCutter) and cls.menu)
            raise SettingError(
                f"menu: {str(option)!r} must be a choice for one part, it decides over the whole model at once. "
                f"Pass it as --method, or put {others} on the menu."
            )


def cutters(menu: Sequence[Option]) -> list[SiteCutter]:
    """Methods of the menu that cut one coupled cut."""
    return [option.steps[0] for option in menu if len(option.steps) == 1 and isinstance(option.steps[0], SiteCutter)]


def levels(target: Target, cut: Site, menu: Sequence[Option]) -> dict[str, SiteCutter]:
    """Methods of the menu that cut a coupled cut, as the target can hold what they leave, by their text."""
    found = {}
    for step in cutters(menu):
        fitted = target.adapt(cut, Option((step,))) if step.suits(cut) else None
        if fitted is not None and isinstance(fitted.steps[0], SiteCutter):
            found[str(fitted)] = fitted.steps[0]
    return found


def spanners(menu: Sequence[Option]) -> list[Spanner]:
    """Methods of the menu that leave out blocks."""
    return [option.steps[0] for option in menu if len(option.steps) == 1 and isinstance(option.steps[0], Spanner)]


def offered(target: Target, site: Site, menu: Sequence[Option]) -> dict[str, Option]:
    """Options of the menu as the target can hold them on ``site``, by their text; keeping the weights is one where the target allows it."""
    if rules := menu.rules(site) if isinstance(menu, Menu) else ():
        return _under_rules(target, site, menu, rules)
    found = {}
    options = weight_options(menu)
    if suits(menu):
        options = [one for option in options for one in suited(target, site, option)]
    for option in (Option(), *options):
        fitted = target.adapt(site, option)
        if fitted is not None and all(step.saves(site) for step in fitted.steps):
            found[str(fitted)] = fitted
    without = menu.without if isinstance(menu, Menu) else ()
    return {text: option for text, option in found.items() if text not in without}


def _under_rules(target: Target, site: Site, menu: Sequence[Option], rules: Sequence[Rule]) -> dict[str, Option]:
    """What rules leave of a menu, as the target can hold it with the settings that they fix; keeping the weights only where they say so."""
    options = ruled(menu, rules)
    if getattr(menu, "declared", False):
        options = [option for option in options if not repaired(option, _REPAIRED_BITS)]
    if suits(menu) and not grouped(rules):
        options = [one for option in options for one in suited(target, site, option)]
    fitted = (target.adapt(site, option) for option in options)
    return {str(option): option for option in fitted if option is not None and holds(rules, option) and not oversized(site, option)}


def oversized(site: Site, option: Option | None) -> str:
    """Which weight of a site codebooks of an option would take as much as, and what to do; nothing where there is none."""
    books = [step for step in option.steps if isinstance(step, Codebooks)] if option is not None else []
    return next((why for step in books for unit in site.units if (why := step.excess(unit.name, unit.shape[1], unit.dense_bytes))), "")
