"""Work done once for the same objects, told apart by what they are and not by their values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Once:
    """A function that remembers: blocks that are alike share tuples of tens of thousands of numbers, which take longer to compare than this."""

    def __init__(self, work: Callable[..., Any]):
        self._work = work
        self._known: dict[tuple[int, ...], tuple[tuple[Any, ...], Any]] = {}

    def __call__(self, *given: Any) -> Any:
        """What the function gives for these objects."""
        key = tuple(map(id, given))
        if key not in self._known:  # what was given is held, so that nothing else gets its place in memory
            self._known[key] = given, self._work(*given)
        return self._known[key][1]
