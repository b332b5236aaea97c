"""A receipt as one page: where the bytes went, what it cost, and what was verified."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from modicum.core.budget import readable
from modicum.fit.receipts import as_written
from modicum.receipt.chart import SCHEMES, chart


def report(receipt: Mapping[str, Any]) -> str:
    """One self-contained HTML page for a receipt, without scripts or other files; the same receipt gives the same page.

    Raises ``SettingError`` for a receipt that is not as ``fit`` writes it.
    """
    with as_written():  # drawing and templates
        charts = {scheme.name: Markup(chart(receipt, scheme)) for scheme in SCHEMES} if receipt["sites"] else {}
        return render("report.html", charts=charts, **receipt)


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
    environment.filters |= {"size": readable, "words": _words}
    return environment


def _words(value: Any) -> str:
    """A value of the receipt as text."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(item)}" for name, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_words, value)) or "none"
    if value is None:
        return "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
