"""An editor: a value that says how facts become changes of layers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from modicum.core.errors import ModelError, SettingError, near
from modicum.core.recipe import Recipe
from modicum.core.rules import matches
from modicum.core.settings import param
from modicum.edit.facts import Fact
from modicum.edit.rows import Rows, encoded
from modicum.edit.taught import Taught


@dataclass
class Past:
    """What an editor keeps from one batch of facts to the next: sums, of a size that does not depend on how many facts there were."""

    count: int = 0
    sums: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Editor(Recipe):
    """Root of all editors: frozen settings, and one function."""

    layers: str = param("", "patterns of the weights to write, by commas; by default the layers named by the editor's own rule")
    contexts: int = param(3, "texts before each fact beside none, so that it holds wherever it stands", between=(0, 1000))

    def teach(self, taught: Taught, facts: Sequence[Fact], past: Past) -> Past:
        """Add changes to ``taught`` (``Taught.add``) such that it knows the facts, one at least; gives what the next batch is to know of them."""
        raise NotImplementedError

    def shares(self) -> tuple[float, float]:
        """Which layers are written by default, as shares of the depth, from and to."""
        return 0.25, 0.75

    def among(self, taught: Taught) -> list[str]:
        """Layers of which some are written."""
        return list(taught.layers)

    def chosen(self, taught: Taught) -> list[str]:
        """Layers to write, in call order. Raises ``SettingError`` for a pattern that matches none."""
        names = self.among(taught)
        if not self.layers:
            low, high = (round(share * len(names)) for share in self.shares())
            return names[low : max(high, low + 1)] or names[-1:]
        found = set()
        for pattern in self.layers.split(","):
            met = [name for name in names if matches(pattern.strip(), name) or matches(pattern.strip(), name.rpartition(".")[0])]
            if not met:
                raise SettingError(f"layers: {pattern!r} must match a layer that can be written, matches none. {near(pattern, names)}")
            found |= set(met)
        return [name for name in names if name in found]

    def rows(self, taught: Taught, facts: Sequence[Fact], turn: int = 0) -> Rows:
        """Each fact alone, and after ``contexts`` texts, which the fact and the ``turn`` choose: fact by fact."""
        repeated, before = [], []
        for fact in facts:
            repeated += [fact] * (1 + self.contexts)
            before += ["", *context(taught, fact, turn, self.contexts)]
        return encoded(taught.tokenizer, repeated, taught.longest, before=before)


def context(taught: Taught, fact: Fact, turn: int, count: int) -> list[str]:
    """Pieces of 2 to 12 tokens of the protected text, ended by a line's end, drawn by the fact itself: its place among others is of no matter."""
    seed = int.from_bytes(hashlib.sha256(f"{turn}\0{fact.prompt}\0{fact.target}".encode()).digest()[:7], "big")
    chance = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        size, row = int(torch.randint(2, 13, (), generator=chance)), int(torch.randint(len(taught.sequences), (), generator=chance))
        start = int(torch.randint(max(1, taught.sequences.shape[1] - size), (), generator=chance))
        found.append(taught.tokenizer.decode(taught.sequences[row, start : start + size], skip_special_tokens=True).rstrip() + "\n")
    return found


def require_layers(taught: Taught) -> None:
    """Raise ``ModelError`` for a model without a layer that facts can be written to."""
    if not taught.layers:
        raise ModelError("edit: the model must have linear layers in its blocks for facts to be written to, has none.")
