"""What may be chosen: the menu a target is offered by default, and what of it fits a site."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

from modicum.core.method import Method, registry
from modicum.core.option import Option
from modicum.core.unit import Site
from modicum.drop._family import SiteCutter, Spanner
from modicum.export import Target
from modicum.quantize._family import Quantizer
from modicum.repair._family import Repairer

# A low-rank repair stands on options of at most so many bits: above, the next bit is the better buy.
_REPAIRED_BITS = 3


def default_menu(target: Target, group: int) -> tuple[Option, ...]:
    """Every method at the settings it declares in ``menu``, as far as the target's readers agree on it; ``group`` columns share a scale."""
    return tuple(option for option in everything(group) if target.common(option))


def everything(group: int) -> Iterator[Option]:
    """All options that methods declare, repairs on top of the integer options of few bits."""
    steps = [_grouped(cls(**settings), group) for _, cls in sorted(registry().items()) for settings in cls.menu]
    repairs = [step for step in steps if isinstance(step, Repairer)]
    for step in steps:
        if not isinstance(step, Repairer):
            yield Option((step,))
        if isinstance(step, Quantizer) and step.bits <= _REPAIRED_BITS:
            yield from (Option((step, repair)) for repair in repairs)


def _grouped(step: Method, group: int) -> Method:
    settings: dict[str, Any] = {"group": group} if any(field.name == "group" for field in fields(step)) else {}
    return replace(step, **settings)


def weight_options(menu: Sequence[Option]) -> list[Option]:
    """Options of the menu for the weights themselves."""
    return [option for option in menu if not any(isinstance(step, SiteCutter | Spanner) for step in option.steps)]


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
    found = {}
    for option in (Option(), *weight_options(menu)):
        fitted = target.adapt(site, option)
        if fitted is not None:
            found[str(fitted)] = fitted
    return found
