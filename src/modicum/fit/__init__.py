"""One run: what is asked for, the choice, the forms, the files, and the account of it.

``modicum.fit`` is this folder and the function: calling the module calls ``fit``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modicum.core.verbs import as_verb

if TYPE_CHECKING:
    from modicum.fit.run import Result, fit

__all__ = ["Result", "fit"]


as_verb(__name__, "run")
