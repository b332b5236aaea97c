"""Whether the elements of a list of modules are a chain, of which one may be left out, or branches, where others would take its place."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence, Set
from typing import Any

import torch

from modicum.models.model import Block


class Streams:
    """What the blocks of each list go on from, as long as it lives."""

    def __init__(self, blocks: Mapping[str, Block]):
        self.blocks = blocks
        self.shapes: dict[str, torch.Size] = {}
        self.seen: dict[str, list[Any]] = {}
        self.beside: set[str] = set()  # lists with blocks that go on from one tensor

    def note(self, name: str, given: Any) -> None:
        """Remember what a block is given."""
        if isinstance(given, torch.Tensor):
            home, self.shapes[name] = self.blocks[name].list_name, given.shape
            self.beside |= {home} if any(seen() is given for seen in self.seen.get(home, [])) else set()
            self.seen.setdefault(home, []).append(weakref.ref(given))

    def branches(self, called: Sequence[str], droppable: Set[str]) -> set[str]:
        """Blocks of lists that are no chain, such as experts or heads. A chain is called whole and in its order, and what its blocks go on from
        is never the same tensor, and of one shape where they may go.
        """
        lists: dict[str, list[str]] = {}
        for block in self.blocks.values():
            lists.setdefault(block.list_name, []).append(block.name)
        found: set[str] = set()
        for home, members in lists.items():
            mine, shapes = set(members), {self.shapes[name] for name in members if name in droppable and name in self.shapes}
            if home in self.beside or len(shapes) > 1 or [name for name in called if name in mine] != members:
                found |= mine
        return found
