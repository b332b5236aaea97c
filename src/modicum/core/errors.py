"""What can go wrong through the caller, in four kinds under one root.

Every message follows one pattern: *who: what must hold, what came. What to do.*
"""

from __future__ import annotations

import difflib
import heapq
from collections.abc import Iterable

_SHOWN = 10  # names of a list
_QUOTED = 200  # characters of somebody else's message


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
    """Sentence that offers the known names nearest to ``name``; where none is near, all of a few, or the nearest ten and how many there are."""
    known = sorted(set(known))
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    if close:
        return f"Did you mean {' or '.join(close)}?"
    if len(known) <= _SHOWN:
        return f"Known: {', '.join(known)}."
    alike = difflib.SequenceMatcher(b=name)

    def likeness(other: str) -> float:
        alike.set_seq1(other)
        return alike.quick_ratio()

    return f"The nearest of {len(known)}: {', '.join(heapq.nlargest(_SHOWN, known, likeness))}."


def listed(names: Iterable[str]) -> str:
    """Names for a sentence: the first ten, and how many more there are."""
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def quoted(error: BaseException | str, most: int = _QUOTED) -> str:
    """What somebody else's error says, for a sentence of ours: its first line, or the next where that only leads to it.

    It ends between two words where it is too long.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    line = lines[1] if lines[0].endswith(":") and len(lines) > 1 else lines[0]
    if len(line) <= most:
        return line.rstrip(".")
    whole = line[: most - 2].rpartition(" ")[0] or line[: most - 2]
    return f"{whole.rstrip(' ,;:.(')} …"
