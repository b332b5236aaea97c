"""Several sources of text in one setting, each with a weight: ``code/=3,letters.txt=1``."""

from __future__ import annotations

import math
import os
from pathlib import Path

from modicum.core.errors import DataError, quoted

# What stands for text that the model writes itself.
OWN = "self"


def is_own(source: str) -> bool:
    """Whether a source is what the model writes itself: its word, where nothing is there under that name."""
    return source == OWN and not Path(OWN).exists()


def sources_of(path: str | os.PathLike[str]) -> list[tuple[str, float]]:
    """The sources that a ``--data`` names, and the weight of each.

    One that is there under its whole name, commas and all, is one source. Otherwise commas part several, each with ``=`` and a positive number
    behind it where it is to count otherwise than as 1. Raises ``DataError`` where one is empty or named twice, and for a weight that is none.
    """
    whole = os.fspath(path)
    if Path(whole).exists() or not ("," in whole or "=" in whole):
        return [(whole, 1.0)]
    found: dict[str, float] = {}
    for word in whole.split(","):
        name, divided, told = word.rpartition("=")
        source, weight = (name, _weight(whole, told)) if divided and not Path(word).exists() else (word, 1.0)
        if not source.strip() or source in found:
            why = f"{source} is named twice" if source.strip() else "one name is empty"
            raise DataError(f"data: {quoted(whole)} must name different sources between its commas, {why}. Name each once.")
        found[source] = weight
    return list(found.items())


def _weight(whole: str, told: str) -> float:
    try:
        weight = float(told)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise DataError(
            f"data: {quoted(whole)} must have a positive number behind each =, {quoted(told) if told else 'nothing'} came. Write code/=3."
        )
    return weight
