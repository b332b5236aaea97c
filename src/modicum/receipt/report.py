"""A receipt as one page: where the bytes went, what it cost, and what was verified."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from modicum.core.budget import readable
from modicum.core.errors import SettingError, quoted
from modicum.core.files import read_json
from modicum.receipt.chart import SCHEMES, chart

RECEIPT_FORMAT, RECEIPT_VERSION = "modicum-receipt", 1
_PARTS = ("model", "request", "data", "seed", "versions", "bytes", "coverage", "sites", "quality", "verification", "events", "stages")


def report(receipt: Mapping[str, Any]) -> str:
    """One self-contained HTML page for a receipt, without scripts or other files; the same receipt gives the same page.

    Raises ``SettingError`` for a receipt that is not as ``fit`` writes it.
    """
    try:
        charts = {scheme.name: Markup(chart(receipt, scheme)) for scheme in SCHEMES} if receipt["sites"] else {}
        return render("report.html", charts=charts, **receipt)
    except Exception as error:  # whatever drawing and templates raise at values of another kind
        raise SettingError(f"receipt: its parts must be as fit writes them, are not ({quoted(error)}). Run fit again.") from error


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


def read_receipt(path: str | Path) -> dict[str, Any]:
    """Read a receipt that ``fit`` wrote. Raises ``SettingError`` for anything else."""
    try:
        body = read_json(path)
    except ValueError as error:
        raise SettingError(f"receipt {path}: must be a readable JSON file ({error}). Name a receipt.json that fit wrote.") from None
    if not isinstance(body, dict) or body.get("format") != RECEIPT_FORMAT:
        raise SettingError(f"receipt {path}: must be an object of format {RECEIPT_FORMAT}, is another. Name a receipt.json that fit wrote.")
    if body.get("version") != RECEIPT_VERSION:
        raise SettingError(
            f"receipt {path}: must be of version {RECEIPT_VERSION}, is {body.get('version')!r}. Use the modicum that wrote it."
        )
    if missing := [part for part in _PARTS if part not in body]:
        raise SettingError(f"receipt {path}: must hold all its parts, {', '.join(missing)} is missing. Run fit again.")
    if wrong := _misshapen(body):
        raise SettingError(f"receipt {path}: {wrong} must be as fit writes it, is not. Run fit again.")
    return body


def _misshapen(body: dict[str, Any]) -> str:
    """The first part of a receipt that a reader relies on and that is not what it should be."""
    expected = {("model", "name"): str, ("data", "source"): str, ("request", "target"): str, ("seed",): int}
    request = body["request"] if isinstance(body["request"], dict) else {}
    expected |= {("request", name): int for name in ("samples", "tokens", "micro_batch", "test_samples") if name in request}
    for path, kind in expected.items():
        value: Any = body
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        if not isinstance(value, kind) or isinstance(value, bool):
            return ".".join(path)
    return ""


def _words(value: Any) -> str:
    """A value of the receipt as text."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(item)}" for name, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_words, value)) or "none"
    if value is None:
        return "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
