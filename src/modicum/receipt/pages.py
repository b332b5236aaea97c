"""Templates of this folder, and how their values are written."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from modicum.core.budget import readable
from modicum.fit.card import outcome


def render(page: str, /, **values: Any) -> str:
    """A page of this folder, with values as text unless they are marked as markup."""
    return _pages().get_template(page).render(**values)


@cache
def _pages() -> jinja2.Environment:
    """Templates of this folder, each compiled once in a process."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"size": readable, "words": _words, "part": _part, "at": _at, "signed": _signed}
    return environment


def _words(value: Any) -> str:
    """A value of the receipt as text."""
    if isinstance(value, Mapping) and "result" in value:
        return outcome(value).replace("**", "")
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(item)}" for name, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_words, value)) or "none"
    if value is None:
        return "none"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _signed(value: float) -> str:
    """A difference, with its sign."""
    return f"{value:+.3g}".replace("-", "−", 1)


def _part(name: str, prefix: str) -> str:
    """A row of the map without what all begin with."""
    return name.removeprefix(prefix).lstrip(".") or name


def _at(states: list[dict[str, Any]], point: int) -> dict[str, Any]:
    """The state of a cell at a point of the frontier."""
    return [state for state in states if state["at"] <= point][-1]
