"""Settings said once: the default, the help and the bounds that the check, the command line, the docs and searches all read."""

from __future__ import annotations

import dataclasses
from functools import cache
from numbers import Integral, Real
from typing import Any, get_type_hints

from modicum.core.errors import SettingError, near, quoted

# Seeds that every source of chance takes.
SEEDS = (0, 2**63 - 1)
_SAID = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def param(
    default: Any, help: str, *, between: tuple[float, float] | None = None, choices: tuple | None = None, dial: bool = False,
    metavar: str = "", group: str = "", several: bool = False, table: bool = False,
) -> Any:  # fmt: skip
    """A dataclass field with what everybody needs to know of a setting: default, help, and closed bounds or choices.

    ``dial`` marks what the budget turns: it is always written, default or not. ``metavar`` stands for the value in the command line's help,
    under the heading ``group``. In a file ``several`` texts may be a list, where the command line has commas, and a ``table`` may stand for
    a list of ``key: text``.
    """
    said = {
        "help": help, "between": between, "choices": choices, "dial": dial, "metavar": metavar, "group": group, "several": several,
        "table": table,
    }  # fmt: skip
    return dataclasses.field(default=default, metadata=said)


def require(value: Any) -> None:
    """Check a run's settings, told by their names alone, against kinds, bounds and choices. Raises ``SettingError``."""
    cls: Any = type(value)
    for field in dataclasses.fields(value):
        got, between, choices = getattr(value, field.name), field.metadata.get("between"), field.metadata.get("choices")
        kinds = getattr(hints(cls)[field.name], "__args__", (hints(cls)[field.name],))
        if got is not None and not any(_is(got, kind) for kind in kinds):
            raise SettingError(f"{field.name}: must be {_SAID[kinds[0]]}, got {quoted(repr(got), 60)}.")
        if choices is not None and got is not None and got not in choices:
            raise SettingError(f"{field.name} {got!r}: is not known. {near(str(got), choices)}")
        if between is not None and got is not None and not (between[0] <= got <= between[1] and abs(got) < float("inf")):
            raise SettingError(f"{field.name}: must be {bounds(between)}{' and finite' if got == float('inf') else ''}, got {got}.")


def bounds(between: tuple[float, float]) -> str:
    """Closed bounds in words."""
    low, high = (f"{bound:g}" if isinstance(bound, float) else str(bound) for bound in between)
    return f"at least {low}" if between[1] == float("inf") else f"from {low} to {high}"


def check(value: Any) -> None:
    """Check every field of the frozen dataclass ``value`` against its bounds. Raises ``SettingError``."""
    cls: Any = type(value)
    for name, kinds, between, choices in _bounded(cls):
        got = getattr(value, name)
        said = ""
        if not any(_is(got, kind) for kind in kinds):
            said = _named(kinds)
        elif choices is not None and got not in choices:
            said = f"one of {', '.join(map(str, choices))}"
        if said:
            raise SettingError(f"{_called(cls)}.{name}: must be {said}, got {got!r}.")
        if between is not None and got is not None and not between[0] <= got <= between[1]:
            raise SettingError(f"{_called(cls)}.{name}: must lie between {between[0]} and {between[1]}, got {got!r}.")


@cache
def _bounded(cls: Any) -> list[tuple[str, tuple, Any, Any]]:
    """Of each field its name, the kinds of value it takes, its bounds and its choices: methods are made by the thousand."""
    kinds = {name: getattr(kind, "__args__", (kind,)) for name, kind in hints(cls).items()}
    return [(one.name, kinds[one.name], one.metadata.get("between"), one.metadata.get("choices")) for one in dataclasses.fields(cls)]


def _called(cls: Any) -> str:
    """What users write for a class of settings: a method's name, as in an option, else the class's own."""
    return str(cls.key()).rpartition("/")[2] if callable(getattr(cls, "key", None)) else cls.__name__


def require_seed(seed: int) -> None:
    """Raise ``SettingError`` for a seed that some source of chance would refuse at the end of a run."""
    if not SEEDS[0] <= seed <= SEEDS[1]:
        raise SettingError(f"seed: must be {bounds(SEEDS)}, got {seed}.")


@cache
def hints(cls: Any) -> dict[str, Any]:
    """Types of a dataclass's fields."""
    return get_type_hints(cls)


def read(cls: type, text: dict[str, str], who: str) -> Any:
    """Build dataclass ``cls`` from settings given as text. Raises ``SettingError`` for unknown names and unreadable values."""
    kinds_of = hints(cls)
    known = {field.name for field in dataclasses.fields(cls)}
    values = {}
    for name, word in text.items():
        if name not in known:
            raise SettingError(f"{who}: has no setting {name!r}. {near(name, known) if known else 'It has none.'}")
        values[name] = _parse(word, kinds_of[name], f"{who}.{name}")
    return cls(**values)


def write(value: Any) -> str:
    """Settings of dataclass ``value`` that differ from their defaults, and all dials, as ``name=value`` words in field order."""
    words = []
    for field in dataclasses.fields(value):
        got = getattr(value, field.name)
        if got != field.default or field.metadata.get("dial"):
            words.append(f"{field.name}={str(got).lower() if isinstance(got, bool) else got}")
    return " ".join(words)


def _parse(word: str, hint: Any, who: str) -> Any:
    kinds = getattr(hint, "__args__", (hint,))
    if word.lower() == "none" and type(None) in kinds:
        return None
    for kind in kinds:
        try:
            if kind is bool:
                return {"true": True, "false": False, "yes": True, "no": False}[word.lower()]
            if kind in (int, float, str):
                return kind(word)
        except (ValueError, KeyError):
            continue
    raise SettingError(f"{who}: must be {_named(kinds)}, got {word!r}.")


def _is(value: Any, kind: Any) -> bool:
    """Whether a value is of a setting's type; whole numbers are numbers, truth values are not."""
    if type(value) is kind or kind not in (bool, int, float, str, type(None)):
        return True
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, {int: Integral, float: Real}.get(kind, kind))


def _named(kinds: tuple) -> str:
    return " or ".join(_SAID.get(kind, str(kind)) for kind in kinds if kind is not type(None))
