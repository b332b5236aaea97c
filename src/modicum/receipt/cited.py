"""Which papers stand behind a result: those of the methods on its layers, of the allocator, and of how harm was told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modicum.allocate import JUDGED
from modicum.allocate._papers import CACHE, HARMS, PAPERS
from modicum.core.errors import ModicumError, SettingError
from modicum.core.method import Paper
from modicum.core.option import Option
from modicum.fit.account import DROPPED
from modicum.table.findings import GONE


@dataclass(frozen=True)
class Cited:
    """One thing that a result used: its ``key``, ``where`` it was used, and its paper, where it has one."""

    key: str
    where: str
    paper: Paper | None


def cited(receipt: Mapping[str, Any]) -> list[Cited]:
    """What a run used, by its receipt: methods first, the most used ones before the others. Raises ``SettingError`` for an option nobody knows."""
    counts: Counter[str] = Counter()
    papers: dict[str, Paper | None] = {}
    for row in receipt["sites"]:
        for step in _steps(row.get("option")):
            counts[step.key()] += 1
            papers[step.key()] = step.paper
    found = [Cited(key, f"on {count} choices" if count > 1 else "on one choice", papers[key]) for key, count in counts.most_common()]
    return found + _choosing(receipt)


def _steps(text: Any) -> list[Any]:
    """Methods of a site's option, or of the different ones that its units have."""
    if not isinstance(text, str) or text in (GONE, DROPPED):
        return []
    try:
        return [step for one in text.split(", ") for step in Option.parse(one).steps]
    except ModicumError as error:
        raise SettingError(f"option {text!r}: must be one that this version knows ({error}). Use the modicum that wrote it.") from None


def _choosing(receipt: Mapping[str, Any]) -> list[Cited]:
    """How the plan was chosen, where it was."""
    search = receipt.get("search") or {}
    allocator, harm = search.get("allocator"), search.get("harm")
    found = [Cited(f"allocate/{allocator}", "to divide the budget", PAPERS.get(allocator))] if isinstance(allocator, str) else []
    if allocator in JUDGED and search.get("evaluations"):
        found.append(Cited("allocate/cache", "to judge no candidate twice", CACHE))
    if isinstance(harm, str) and harm in HARMS:
        found.append(Cited(f"harm/{harm}", "to predict what each option costs", HARMS[harm]))
    return found
