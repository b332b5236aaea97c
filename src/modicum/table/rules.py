"""What rules by layer make of a menu: on the layers that a rule means, it says what may be chosen there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import fields, replace
from typing import Any

from modicum.core import settings
from modicum.core.errors import SettingError
from modicum.core.method import find
from modicum.core.option import Option
from modicum.core.rules import METHOD, Rule
from modicum.core.unit import Site, Unit
from modicum.drop._family import Dropper
from modicum.quantize._family import Quantizer
from modicum.repair._family import Repairer

Ruling = Callable[[Site], tuple[Rule, ...]]


def names_of(unit: Unit) -> tuple[str, str]:
    """Names by which a pattern may mean a unit."""
    return unit.name, unit.module


def ruling(rules: Sequence[Rule], site: Site) -> tuple[Rule, ...]:
    """Rules that hold for a site, in their order. Raises ``SettingError`` where they do not say the same of layers that one choice binds."""
    of = [tuple(rule for rule in rules if rule.matches((site.name, *names_of(unit)))) for unit in site.units]
    said = lambda found: [rule.text for rule in found]
    for unit, found in zip(site.units, of):
        if said(found) != said(of[0]):
            told = lambda found: " and ".join(map(repr, said(found))) or "nothing"
            raise SettingError(
                f"set: must say the same of the layers of {site.name}, which are one choice for this target, says {told(of[0])} of "
                f"{site.units[0].module} and {told(found)} of {unit.module}. Name all of them, or pass --target modicum."
            )
    return of[0]


def ruled(options: Sequence[Option], rules: Iterable[Rule]) -> list[Option]:
    """Options that may be chosen under rules, each on what those before it leave: a later rule counts more."""
    found = menu = [option for option in options if option.steps and not any(isinstance(step, Dropper) for step in option.steps)]
    for rule in rules:
        if rule.words:
            found = list(dict.fromkeys(_set(found if any(option.steps for option in found) else menu, rule.words)))
        else:
            found = [Option.parse(rule.text)]
    return found


def _set(options: Sequence[Option], words: dict[str, str]) -> Iterable[Option]:
    """Options with settings as they are fixed, those that have none of that name left out."""
    if METHOD in words:
        cls, words = find(words[METHOD]), {name: value for name, value in words.items() if name != METHOD}
        options = [option for option in options if isinstance(option.steps[0], cls)] or _by(cls, options)
    for option in options:
        fixed = [_fixed(step, words) for step in option.steps]
        if {name for _, names in fixed for name in names} == words.keys():
            yield Option(tuple(step for step, _ in fixed))


def _fixed(step: Any, words: dict[str, str]) -> tuple[Any, set[str]]:
    """A step with those of the settings that it has, and their names."""
    mine = _meant(step, words)
    return replace(step, **mine), set(mine)


def _meant(step: Any, words: dict[str, str]) -> dict[str, Any]:
    """The values of those of the settings that a step has."""
    mine = {name: value for name, value in words.items() if name in _settings(step)}
    read = settings.read(type(step), mine, step.key().rpartition("/")[2])
    return {name: getattr(read, name) for name in mine}


def _by(cls: Any, options: Sequence[Option]) -> list[Option]:
    """Options of a method that is not on the menu: at the settings of those of its family, else at those that it declares, else at its own."""
    known = settings.hints(cls)
    alike = [_said(option.steps[0]) for option in options if type(option.steps[0]).family() == cls.family()]
    shared = [{name: value for name, value in words.items() if name in known} for words in alike if words.keys() & known.keys()]
    return [Option((cls(**words),)) for words in shared or cls.menu or ({},)]


def _said(step: Any) -> dict[str, Any]:
    """Settings of a step that its text says."""
    return {
        part.name: getattr(step, part.name)
        for part in fields(step)
        if part.metadata.get("dial") or getattr(step, part.name) != part.default
    }


def _settings(step: Any) -> Collection[str]:
    cls: Any = type(step)
    return settings.hints(cls)


def holds(rules: Iterable[Rule], option: Option) -> bool:
    """Whether an option, as a target can hold it, still has the settings that rules fix; what stood before a whole option counts no more."""
    words: dict[str, str] = {}
    for rule in rules:
        words = {name: value for name, value in (words | rule.words).items() if name != METHOD} if rule.words else {}
    return all(getattr(step, name) == value for step in option.steps for name, value in _meant(step, words).items())


def grouped(rules: Iterable[Rule]) -> bool:
    """Whether rules say how many columns share a scale."""
    return any("group" in rule.words or not rule.words for rule in rules)


def repaired(option: Option, most: int) -> bool:
    """Whether an option repairs codes of more than ``most`` bits."""
    first = option.steps[0] if option.steps else None
    return isinstance(first, Quantizer) and first.bits > most and any(isinstance(step, Repairer) for step in option.steps[1:])
