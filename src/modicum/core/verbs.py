"""A folder named by a verb: calling the module calls the function of that name in it."""

from __future__ import annotations

import inspect
import sys
from types import ModuleType
from typing import Any


class _Verb(ModuleType):
    def __call__(self, *args: Any, **settings: Any) -> Any:
        return _function(self)(*args, **settings)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(_function(self))


def _function(module: ModuleType) -> Any:
    return getattr(module, module.__name__.rpartition(".")[2])


def as_verb(module: str) -> None:
    """Let ``modicum.fit`` be the folder and the function, whichever of the two is asked for first."""
    sys.modules[module].__class__ = _Verb
