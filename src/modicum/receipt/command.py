"""The command that makes a result again, from what its receipt says was asked."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from modicum.core.config import FROM_PYTHON, of_settings
from modicum.fit.request import Request


def command(receipt: Mapping[str, Any]) -> str:
    """For the command line; nothing where the receipt does not say what was asked, or a part of it came from Python."""
    asked = receipt.get("asked") or {}
    if not asked.get("model") and not asked.get("from"):
        return ""
    return "" if asked.get(FROM_PYTHON) else " \\\n  ".join(shlex.join(words) for words in _lines(asked))


def _lines(asked: Mapping[str, Any]) -> Iterator[list[str]]:
    """Its words, an option to a line."""
    yield ["modicum", "fit", *([str(asked["model"])] if asked.get("model") else [])]
    known = of_settings(Request)
    for name, value in asked.items():
        if name != "model" and value is not False:
            together = isinstance(value, list) and name in known and known[name].kind is not list
            items = [",".join(map(str, value))] if together else value if isinstance(value, list) else [value]
            yield from ([f"--{name.replace('_', '-')}", *([] if item is True else [str(item)])] for item in items)
    yield ["--out", "out/again"]
