"""What can go wrong through the caller, in four kinds under one root.

Every message follows one pattern: *who: what must hold, what came. What to do.*
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ModicumError(Exception):
    """Root of every error a caller can cause; the command line prints it in one sentence and exits with code 2."""


class SettingError(ModicumError, ValueError):
    """A setting, an option's text or a command-line argument is not one that can be used."""


class ModelError(ModicumError, ValueError):
    """A model or checkpoint cannot be read, or holds something that cannot be treated."""


class UnsuitableError(ModelError):
    """A method cannot do its work on this model, or on this part of it; another may."""


class DataError(ModicumError, ValueError):
    """Text or batches cannot be used for what they were given for."""


class BudgetError(ModicumError, ValueError):
    """A budget cannot be met; the message names the smallest that can, what blocks it, and what to relax."""


def near(name: str, known: Iterable[str]) -> str:
    """Sentence that offers the known names nearest to ``name``, or lists them all where none is near."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(close)}?" if close else f"Known: {', '.join(known)}."
