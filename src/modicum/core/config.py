"""Settings in a file, YAML or JSON: the names and the spellings of the command line, so that every value is a text until it is read as one is there.

So none of what YAML makes of plain words counts: ``no`` is a word, ``1:30`` no number of seconds, and nothing in a file can be an object.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, cast

from modicum.core import settings
from modicum.core.errors import SettingError, near, quoted
from modicum.core.files import read_json, read_text

NAME = "run.yaml"
# Names of what a run was given from Python, which no file holds.
FROM_PYTHON = "given_in_python"
_LONGEST = 1_000_000  # bytes
# What lets a model's files run code is said by whoever runs the command, never by a file that may come with the model.
_NEVER = ("allow_pickle", "trust_remote_code")
_SAID = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", list: "a text or a list of texts"}
_TRUTHS = {"true": True, "yes": True, "false": False, "no": False}
# Settings that are written as plain numbers; sizes, shares and times are texts that the library reads.
_NUMBERS = {"RATE": float, "N": int, "SECONDS": float, "ALPHA": float}


@dataclass(frozen=True)
class Written:
    """How a setting is written: ``bool``, ``int``, ``float``, ``str`` (``several`` may be a list) or ``list`` (that may be a ``table``)."""

    kind: type
    several: bool = False
    table: bool = False


def written(field: Field, hint: Any) -> Written:
    """How a field of settings is written, here and on the command line."""
    if hint is bool:
        return Written(bool)
    if isinstance(field.default, tuple):
        return Written(list, several=True, table=field.metadata["table"])
    return Written(_NUMBERS.get(field.metadata["metavar"], str) if hint is not str else str, field.metadata["several"])


def of_settings(*classes: type) -> dict[str, Written]:
    """How every setting of some classes is written that stands on the command line."""
    return {
        field.name: written(field, settings.hints(cls)[field.name])
        for cls in classes
        for field in fields(cls)
        if field.metadata.get("group")
    }


def read_config(path: str | Path, known: Mapping[str, Written]) -> dict[str, Any]:
    """Settings in a file by their names, and under ``FROM_PYTHON`` the names of those that the file lacks.

    *Raises*: ``SettingError`` for a file that cannot be read, a name that is not ``known``, a value of another kind.
    """
    found: dict[str, Any] = {}
    for key, value in _table(path):
        name = key.replace("-", "_")
        if name in found:
            raise SettingError(f"config {path}: {name} must be given once, comes twice. Leave one out.")
        if name in _NEVER:
            flag = name.replace("_", "-")
            raise SettingError(
                f"config {path}: {name} must be said where the run is started, not in a file. Leave it out, and pass --{flag}."
            )
        if name not in known and name != FROM_PYTHON:
            raise SettingError(f"config {path}: has no setting {quoted(repr(key), 60)}. {near(name, known)}")
        if value is not None:
            found[name] = _value(value, known.get(name, Written(list, several=True)), f"config {path}: {name}")
    return found


def require_given(path: str | Path, named: Iterable[str], given: Iterable[str]) -> None:
    """Raise ``SettingError`` where a run was given something from Python that this one is not given."""
    if missing := sorted(set(named) - set(given)):
        raise SettingError(f"config {path}: {missing[0]} was given from Python, which no file holds. Give it again.")


def _table(path: str | Path) -> list[tuple[str, Any]]:
    """Keys and values of a file, texts, lists and pairs of texts; None for what is left open."""
    import yaml

    try:
        if str(path).endswith(".json"):
            text = json.dumps(read_json(path, _LONGEST), ensure_ascii=False)
        else:
            text = read_text(path, _LONGEST)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        top = _plain(node, set()) if node is not None else []
        if not isinstance(top, _Pairs | type(None)) and top != []:
            raise ValueError("it is no table of settings, name: value")
        return list(top or [])
    except RecursionError:
        raise SettingError(f"config {path}: must be readable YAML or JSON (it is nested too deeply).") from None
    except (ValueError, yaml.YAMLError) as error:
        raise SettingError(f"config {path}: must be readable YAML or JSON ({_told(error)}).") from None


def read_tree(path: str | Path, who: str) -> Any:
    """What a YAML or JSON file holds: texts, lists and dicts of texts, None for what is left open; no plain word becomes anything else.

    *Raises*: ``SettingError``, for what cannot be read, parts that stand for others, and a name that comes twice.
    """
    import yaml

    try:
        node = yaml.compose(read_text(path, _LONGEST), Loader=yaml.SafeLoader)
        return _told_apart(_plain(node, set())) if node is not None else None
    except RecursionError:
        raise SettingError(f"{who} {path}: must be readable YAML or JSON (it is nested too deeply).") from None
    except (ValueError, yaml.YAMLError) as error:
        raise SettingError(f"{who} {path}: must be readable YAML or JSON ({_told(error)}).") from None


def _told_apart(value: Any) -> Any:
    if isinstance(value, _Pairs):
        if len({key for key, _ in value}) < len(value):
            raise ValueError("a name comes twice")
        return {key: _told_apart(item) for key, item in value}
    return [_told_apart(item) for item in value] if isinstance(value, list) else value


class _Pairs(list[tuple[str, Any]]):
    """A table as it stands."""


def _plain(node: Any, seen: set[int]) -> Any:
    """A node's texts, lists and pairs; what stands for something further up is refused, since it can grow without end."""
    if id(node) in seen:
        raise ValueError("a part stands for another, write it out")
    seen.add(id(node))
    if node.id == "scalar":
        return None if node.style is None and node.value in ("", "~", "null") else node.value
    if node.id == "sequence":
        return [_plain(item, seen) for item in node.value]
    pairs = _Pairs((_plain(key, seen), _plain(value, seen)) for key, value in node.value)
    if not all(isinstance(key, str) for key, _ in pairs):
        raise ValueError("a name must be a text")
    return pairs


def _told(error: Exception) -> str:
    """What a reader says, in one line with the place."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    return f"line {mark.line + 1}: {quoted(problem)}" if mark is not None and problem else quoted(error)


def _value(value: Any, how: Written, who: str) -> Any:
    if how.table and isinstance(value, _Pairs) and all(isinstance(text, str) for _, text in value):
        return [f"{key}: {text}" for key, text in value]
    texts = value if how.several and isinstance(value, list) and not isinstance(value, _Pairs) else [value]
    if how.kind in (str, list) and all(isinstance(text, str) for text in texts):
        return texts if how.kind is list else ",".join(texts)
    try:
        if isinstance(value, str):
            return _TRUTHS[value.lower()] if how.kind is bool else how.kind(value)
    except (ValueError, KeyError):
        pass
    tables = ", or a table" if how.table else ""
    raise SettingError(f"{who} must be {_SAID[how.kind]}{tables}, got {_shown(value)}.")


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return quoted(repr(value), 60)
    return "a table" if isinstance(value, _Pairs) else "a list"


def write_config(path: Path, asked: Mapping[str, Any]) -> None:
    """Write settings so that ``read_config`` reads them again."""
    import yaml

    text = yaml.safe_dump(dict(asked), sort_keys=False, allow_unicode=True, width=10**6)
    path.write_text("# What was asked of this run. The same again: modicum COMMAND --config FILE --out DIR\n" + text, encoding="utf-8")


# What the running command was asked; nothing where Python was.
_ASKED: ContextVar[Mapping[str, Any] | None] = ContextVar("asked", default=None)


@contextmanager
def asking(asked: Mapping[str, Any]) -> Iterator[None]:
    """Within it ``write_asked`` knows what was asked of a command."""
    before = _ASKED.set(asked)
    try:
        yield
    finally:
        _ASKED.reset(before)


def write_asked(directory: Path) -> None:
    """Write what was asked of the running command; nothing where Python was asked."""
    if (asked := _ASKED.get()) is not None:
        write_config(directory / NAME, asked)


def beneath(found: Mapping[str, Any], given: Collection[str], alternatives: Iterable[Collection[str]] = ()) -> dict[str, Any]:
    """What of a file's settings counts beside those that are ``given``: other names, and no way that is an alternative to one that is given."""
    others = [set(names) for names in alternatives]
    chosen = [names for names in others if names & set(given)]
    out = set().union(*(names for names in others if chosen and names not in chosen))
    return {name: value for name, value in found.items() if name not in given and name not in out}


Function = TypeVar("Function", bound=Callable[..., Any])


def configured(*classes: type, alternatives: Iterable[Collection[str]] = (), other: Mapping[str, str] | None = None) -> Callable:
    """Let a function read what it is not given from a file, ``config``: settings of some classes, and ``other`` names with its own for them."""

    def wrap(function: Function) -> Function:
        places, names = list(inspect.signature(function).parameters), {"model": "model", **(other or {})}

        @functools.wraps(function)
        def run(*sources: Any, config: str | Path | None = None, **settings: Any) -> Any:
            if config is None:
                return function(*sources, **settings)
            given = {name: value for name, value in {**dict(zip(places, sources)), **settings}.items() if value is not None}
            known = of_settings(*classes) | dict.fromkeys(names, Written(str))
            found = {names.get(name, name): value for name, value in read_config(config, known).items()}
            require_given(config, found.pop(FROM_PYTHON, ()), given)
            return function(**beneath(found, given, alternatives), **given)

        return cast(Function, run)

    return wrap
