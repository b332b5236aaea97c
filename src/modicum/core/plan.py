"""The harm table, and the plan chosen from it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modicum.core.errors import SettingError

VERSION = 1


@dataclass(frozen=True)
class Choice:
    """One option on one site: its stored bytes, headers' share included, stored weight values, and predicted harm (KL per token, nats)."""

    option: str
    bytes: int
    values: int
    harm: float


@dataclass
class Table:
    """Choices by site, in call order, and the bytes no choice changes."""

    choices: dict[str, list[Choice]] = field(default_factory=dict)
    fixed: int = 0

    def cost(self, picks: dict[str, int]) -> int:
        """Bytes of a selection of one choice index per site."""
        return self.fixed + sum(self.choices[site][index].bytes for site, index in picks.items())

    def harm(self, picks: dict[str, int]) -> float:
        """Summed predicted harm of a selection."""
        return sum(self.choices[site][index].harm for site, index in picks.items())

    def cheapest(self) -> dict[str, int]:
        """The selection of fewest bytes, ties to the least harm."""
        return {site: min(range(len(found)), key=lambda i: (found[i].bytes, found[i].harm)) for site, found in self.choices.items()}

    def to_json(self) -> dict[str, Any]:
        """JSON value."""
        return {"fixed": self.fixed, "choices": {site: [vars(choice) for choice in found] for site, found in self.choices.items()}}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Table:
        """Inverse of ``to_json``."""
        return cls({site: [Choice(**choice) for choice in found] for site, found in value["choices"].items()}, value["fixed"])


@dataclass
class Plan:
    """Options on sites that do not conflict; sites not named are kept as they are. ``cuts`` holds kept groups of coupled cuts by site."""

    target: str
    options: dict[str, str] = field(default_factory=dict)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Write as JSON that people may edit."""
        body = {
            "format": "modicum-plan",
            "version": VERSION,
            "target": self.target,
            "options": self.options,
            "cuts": self.cuts,
            "notes": self.notes,
        }
        path.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Read a plan. Raises ``SettingError`` for anything malformed."""
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise SettingError(f"plan {path}: must be a readable JSON file ({error}).") from None
        if not isinstance(body, dict) or body.get("format") != "modicum-plan" or body.get("version") != VERSION:
            raise SettingError(
                f"plan {path}: must be an object of format modicum-plan, version {VERSION}. Start from a plan.json that fit wrote."
            )
        options, cuts = body.get("options", {}), body.get("cuts", {})
        if not isinstance(options, dict) or not all(isinstance(text, str) for text in options.values()):
            raise SettingError(f"plan {path}: options must map site names to option texts.")
        if not isinstance(cuts, dict) or not all(
            isinstance(kept, list) and all(isinstance(i, int) for i in kept) for kept in cuts.values()
        ):
            raise SettingError(f"plan {path}: cuts must map site names to lists of kept group numbers.")
        if not isinstance(body.get("target"), str):
            raise SettingError(f"plan {path}: target must be a text.")
        notes = body.get("notes", [])
        if not isinstance(notes, list):
            raise SettingError(f"plan {path}: notes must be a list of texts.")
        return cls(body["target"], options, cuts, [str(note) for note in notes])
