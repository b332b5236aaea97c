"""How far a run is: what those who watch it are told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


class Quiet:
    """Progress that shows nothing; the command line passes one that does."""

    def start(self, stage: str, total: int) -> None:
        """A stage of ``total`` steps begins."""

    def step(self) -> None:
        """One step is done."""

    def tell(self, words: str) -> None:
        """How it goes at the moment, in few words that the next take the place of."""

    def say(self, line: str) -> None:
        """Something that whoever watches wants to know at once."""


def ticked(items: Iterable[Item], tick: Callable[[], None]) -> Iterator[Item]:
    """The items, with a tick as each has been worked on."""
    for item in items:
        yield item
        tick()
