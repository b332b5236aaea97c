"""A folder named by a verb: calling the module calls the function of that name, and what it gives is imported when it is first used."""

from __future__ import annotations

import importlib
import inspect
import sys
from types import ModuleType
from typing import Any


class _Verb(ModuleType):
    _home: str

    def __call__(self, *args: Any, **settings: Any) -> Any:
        return _function(self)(*args, **settings)

    def __getattr__(self, name: str) -> Any:
        """What the folder's contents page lists, from the file where it lives; its settings alone load nothing heavy."""
        if name == self.__name__.rpartition(".")[2] and "." in self._home:
            return getattr(importlib.import_module(self._home), name)
        if name.startswith("__") or name not in self.__dict__.get("__all__", ()):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{self.__name__}.{self._home}"), name)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(_function(self))


def _function(module: ModuleType) -> Any:
    return getattr(module, module.__name__.rpartition(".")[2])


def as_verb(module: str, home: str) -> None:
    """Let ``modicum.fit`` be the folder and the function, whichever of the two is asked for first; all it lists lives in its file ``home``.

    A family named by the verb that its methods serve has its function in a file of a room above, told by its whole name.
    """
    found: Any = sys.modules[module]
    found.__class__, found._home = _Verb, home
