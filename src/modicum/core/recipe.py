"""Methods that are no steps of an option: frozen values of settings with a paper, found by walking the folder of their room."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, TypeVar

from modicum.core import settings
from modicum.core.errors import SettingError, near
from modicum.core.grammar import of_room, spelled
from modicum.core.method import Paper

Kind = TypeVar("Kind", bound="Recipe")

# Rooms whose files are such methods.
ROOMS = ("edit", "forget", "learn")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Root of editors, forgetters and learners; a class with a ``paper``, or that says ``named``, is one of its room's."""

    paper: ClassVar[Paper | None] = None
    named: ClassVar[bool] = False
    # As of other methods.
    known_gaps: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        settings.check(self)

    @classmethod
    def key(cls) -> str:
        """``room/name``, read off the module's path."""
        return "/".join(cls.__module__.split(".")[-2:])

    @classmethod
    def family(cls) -> str:
        """The room."""
        return cls.key().partition("/")[0]

    def __str__(self) -> str:
        return f"{self.key().partition('/')[2]} {settings.write(self)}".strip()


@cache
def recipes(room: str) -> dict[str, type[Recipe]]:
    """Every method of a room by name: a new file is enough."""
    package, found = importlib.import_module(f"modicum.{room}"), dict[str, type[Recipe]]()
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for value in vars(module).values():
            own = isinstance(value, type) and issubclass(value, Recipe) and value.__module__ == module.__name__
            if own and (value.paper is not None or "named" in vars(value)):
                found[info.name] = value
    return found


def every() -> dict[str, type[Recipe]]:
    """All of them, by ``room/name``."""
    return {cls.key(): cls for room in ROOMS for _, cls in sorted(recipes(room).items())}


def recipe(room: str, text: str | Kind) -> Any:
    """The method that a text says, such as ``ultraedit rounds=8``. Raises ``SettingError``."""
    if isinstance(text, Recipe):
        return text
    return _read(room, text, recipes(room))


def check_recipe(room: str, text: str) -> None:
    """Raise what ``recipe`` would of a text, read off the methods' files before anything heavy is imported."""
    _read(room, text, of_room(room))


def _read(room: str, text: str, known: Mapping[str, type]) -> Any:
    steps = spelled(text)
    if len(steps) != 1:
        raise SettingError(f"method {text!r}: must be one method with its settings, is {len(steps)}. Run one after the other.")
    name, given = steps[0]
    if name not in known:
        raise SettingError(f"method {name!r}: is not one of {room}. {near(name, known)}")
    return settings.read(known[name], given, name)
