"""One run: what is asked for, the choice, the forms, the files, and the account of it.

``modicum.fit`` is this folder and the function: calling the module calls ``fit``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modicum.core.verbs import as_verb

if TYPE_CHECKING:
    from modicum.fit.run import Result, fit

__all__ = ["Result", "fit"]


def __getattr__(name: str) -> Any:
    """What the folder gives, imported when it is first used: its settings alone load nothing heavy."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from modicum.fit import run

    return getattr(run, name)


as_verb(__name__)
