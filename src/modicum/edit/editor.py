"""An editor: a value that says how facts become changes of layers, and the registry of all."""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

import torch

from modicum.core import settings
from modicum.core.errors import ModelError, SettingError, near
from modicum.core.grammar import spelled
from modicum.core.method import Paper
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
class Editor:
    """Root of all editors: frozen settings, and one function."""

    paper: ClassVar[Paper | None] = None

    layers: str = param("", "patterns of the weights to write, by commas; by default the layers named by the editor's own rule")
    contexts: int = param(3, "texts before each fact beside none, so that it holds wherever it stands", between=(0, 1000))

    def __post_init__(self) -> None:
        settings.check(self)

    @classmethod
    def key(cls) -> str:
        """``edit/name``."""
        return f"edit/{cls.__module__.rpartition('.')[2]}"

    def __str__(self) -> str:
        return f"{self.key().partition('/')[2]} {settings.write(self)}".strip()

    def teach(self, taught: Taught, facts: Sequence[Fact], past: Past) -> Past:
        """Add changes to ``taught`` (``Taught.add``) such that it knows the facts, one at least; gives what the next batch is to know of them."""
        raise NotImplementedError

    def shares(self) -> tuple[float, float]:
        """Which layers are written by default, as shares of the depth, from and to."""
        return 0.25, 0.75

    def chosen(self, taught: Taught) -> list[str]:
        """Layers to write, in call order. Raises ``SettingError`` for a pattern that matches none."""
        names = list(taught.layers)
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
    """Pieces of 4 to 24 tokens of the protected text, ended by a line's end, drawn by the fact itself: its place among others is of no matter."""
    seed = int.from_bytes(hashlib.sha256(f"{turn}\0{fact.prompt}\0{fact.target}".encode()).digest()[:7], "big")
    chance = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        size, row = int(torch.randint(4, 25, (), generator=chance)), int(torch.randint(len(taught.sequences), (), generator=chance))
        start = int(torch.randint(max(1, taught.sequences.shape[1] - size), (), generator=chance))
        found.append(taught.tokenizer.decode(taught.sequences[row, start : start + size], skip_special_tokens=True).rstrip() + "\n")
    return found


@cache
def editors() -> dict[str, type[Editor]]:
    """Every editor by name, found by walking the folder: a new file is enough."""
    package, found = importlib.import_module("modicum.edit"), {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Editor) and value.__module__ == module.__name__ and value.paper is not None:
                found[info.name] = value
    return found


def editor(text: str | Editor) -> Editor:
    """The editor that a text says, such as ``ultraedit rounds=8``. Raises ``SettingError``."""
    if isinstance(text, Editor):
        return text
    steps = spelled(text)
    if len(steps) != 1:
        raise SettingError(f"method {text!r}: must be one editor with its settings, is {len(steps)}. Edit once, then again.")
    name, given = steps[0]
    if name not in editors():
        raise SettingError(f"method {name!r}: is no editor. {near(name, editors())}")
    made: Editor = settings.read(editors()[name], given, name)
    return made


def require_layers(taught: Taught) -> None:
    """Raise ``ModelError`` for a model without a layer that facts can be written to."""
    if not taught.layers:
        raise ModelError("edit: the model must have linear layers in its blocks for facts to be written to, has none.")
