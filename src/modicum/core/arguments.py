"""What the functions that people call are given: checked against their annotations before any work, so that a slip is told in a sentence."""

from __future__ import annotations

import functools
import inspect
import os
import types
import typing
from collections.abc import Callable, Collection, Iterable
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar, cast

from modicum.core.errors import SettingError, near, quoted

_NAMES = {str: "a text", bool: "true or false", int: "a whole number", float: "a number", Path: "a path"}
_ANYTHING = (Any, inspect.Parameter.empty)

Function = TypeVar("Function", bound=Callable[..., Any])


class UnknownArgumentError(SettingError, TypeError):
    """A function has no such setting; Python's own error is the same kind."""


def checked(*, names: Collection[str] = (), but: Collection[str] = ()) -> Callable[[Function], Function]:
    """Let a function refuse what its annotations do not allow, and of what it takes by ``**settings`` other ``names``.

    Arguments that stand in ``but`` are checked where they are read. Raises ``SettingError``, at an unknown name one that is a ``TypeError`` too.
    """

    def wrap(function: Function) -> Function:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def run(*given: Any, **settings: Any) -> Any:
            known = {name for name, one in signature.parameters.items() if one.kind is not inspect.Parameter.VAR_KEYWORD} | {*names}
            for name in settings.keys() - known:
                raise UnknownArgumentError(f"{function.__name__}: has no setting {name!r}. {near(name, known)}")
            hints = _hints(function)
            for name, value in {**dict(zip(signature.parameters, given)), **settings}.items():
                hint = hints.get(name, Any)
                if name not in but and not _suits(value, hint):
                    raise SettingError(f"{name}: must be {_said(hint)}, got {quoted(repr(value), 60)}.")
            return function(*given, **settings)

        return cast(Function, run)

    return wrap


@functools.cache
def _hints(function: Any) -> dict[str, Any]:
    return typing.get_type_hints(function)


def _suits(value: Any, hint: Any) -> bool:
    if hint in _ANYTHING:
        return True
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_suits(value, kind) for kind in inner)
    if origin is not None and issubclass(origin, Callable):  # type: ignore[arg-type]
        return callable(value)
    if origin is not None:
        if isinstance(value, bytes):
            return False
        few = value if isinstance(value, list | tuple) and issubclass(origin, Iterable) and len(inner) == 1 else ()
        return isinstance(value, origin) and all(_suits(item, inner[0]) for item in few)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, {int: Integral, float: Real, Path: os.PathLike}.get(hint, hint))


def _said(hint: Any) -> str:
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    words = dict.fromkeys(_word(kind) for kind in kinds if kind is not types.NoneType)
    return " or ".join(words)


def _word(kind: Any) -> str:
    origin = typing.get_origin(kind)
    if origin is not None:
        return "a function" if issubclass(origin, Callable) else "a list"  # type: ignore[arg-type]
    return _NAMES.get(kind) or f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}"
