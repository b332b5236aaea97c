"""The harm table, and the plan chosen from it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from modicum.core.errors import SettingError
from modicum.core.files import read_json

VERSION = 1
# What a selection spends: bytes of files, stored weight values, bytes of memory, seconds and multiply-adds in the target's runtime.
RESOURCES = ("bytes", "values", "memory", "seconds", "macs")

Picks = dict[str, int]
# The most a selection may spend of each resource; resources not named are free.
Limits = Mapping[str, float]


@dataclass(frozen=True)
class Choice:
    """One option on one site: what it spends, and its predicted harm (KL per token, nats).

    ``bytes`` are stored bytes, headers' share included; ``values`` stored weight values; ``memory`` bytes, ``seconds`` and ``macs``
    (multiply-adds) what it takes in the target's runtime. ``given`` names options of the parent site under which this choice stands; empty where
    there is no parent. ``distance`` is the squared change of the weights.
    """

    option: str
    bytes: int
    values: int
    harm: float
    memory: int = 0
    seconds: float = 0.0
    given: tuple[str, ...] = ()
    distance: float = 0.0
    macs: float = 0.0

    def spends(self, resource: str) -> float:
        """Amount of one resource."""
        return float(getattr(self, resource))


@dataclass
class Table:
    """Choices by site, and what no choice changes.

    Sites may hang together: what can be chosen for a weight depends on how its coupled cut was chosen, and that on whether its block is
    there at all. ``parents`` names the site that one depends on; parents stand before their children. For every option of the parent at
    least one choice of the child stands. ``fixed`` is the amount of each resource, and the harm, that no choice changes. ``facts`` are figures of a
    site's weights as they are: ``weights`` (how many), ``eigenvalue`` (largest of the loss's Hessian), ``trace`` (of that Hessian, per weight).
    """

    choices: dict[str, list[Choice]] = field(default_factory=dict)
    fixed: dict[str, float] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)
    facts: dict[str, dict[str, float]] = field(default_factory=dict)

    def cost(self, picks: Picks, resource: str = "bytes") -> float:
        """What a selection of one choice index per site spends of a resource."""
        spent = [self.choices[site][index].spends(resource) for site, index in picks.items()]
        return math.fsum([self.fixed.get(resource, 0), *spent])

    def fits(self, picks: Picks, limits: Limits) -> bool:
        """Whether a selection stays within all limits."""
        return all(self.cost(picks, resource) <= most for resource, most in limits.items())

    def harm(self, picks: Picks) -> float:
        """Summed predicted harm of a selection."""
        return math.fsum(self.choices[site][index].harm for site, index in picks.items())

    def forecast(self, picks: Picks) -> float:
        """What a selection is forecast to lose, with what is lost whatever is chosen."""
        return self.fixed.get("harm", 0.0) + self.harm(picks)

    def load(self, choice: Choice, limits: Limits) -> float:
        """What a choice spends as a share of what the choices may spend in all, summed over the limited resources."""
        return sum(choice.spends(resource) / max(most - self.fixed.get(resource, 0), 1e-30) for resource, most in limits.items())

    # Sites that hang together

    @cached_property
    def children(self) -> dict[str, list[str]]:
        """Sites by the site they depend on."""
        found: dict[str, list[str]] = {}
        for child, parent in self.parents.items():
            found.setdefault(parent, []).append(child)
        return found

    def allowed(self, site: str, picks: Picks) -> list[int]:
        """Choices of a site that stand under what its parent has chosen in ``picks``."""
        if site not in self.parents:
            return list(range(len(self.choices[site])))
        return self.under(site, self.choices[self.parents[site]][picks[self.parents[site]]].option)

    def under(self, site: str, option: str) -> list[int]:
        """Choices of a site that stand where its parent chooses ``option``; not to be changed."""
        choices = self.choices[site]
        kept = self._standing.get(site)
        if kept is None or kept[0] is not choices or kept[1] != len(choices):
            found: dict[str, list[int]] = {}
            for index, choice in enumerate(choices):
                for above in choice.given:
                    found.setdefault(above, []).append(index)
            kept = self._standing[site] = (choices, len(choices), found)
        return kept[2].get(option, [])

    @cached_property
    def _standing(self) -> dict[str, tuple[list[Choice], int, dict[str, list[int]]]]:
        """By site its choices, their number, and which of them stand under each option of the parent."""
        return {}

    def consistent(self, picks: Picks) -> bool:
        """Whether every choice stands under what its parent has chosen."""
        return all(picks[site] in self.allowed(site, picks) for site in self.parents)

    def settle(self, picks: Picks) -> Picks:
        """The selection with every choice that no longer stands exchanged for the same option where it does, otherwise for the smallest."""
        settled = dict(picks)
        for site, parent in ((site, self.parents[site]) for site in self.choices if site in self.parents):
            above, now = self.choices[parent][settled[parent]].option, self.choices[site][settled[site]]
            if above not in now.given:
                standing = self.under(site, above)
                same = [index for index in standing if self.choices[site][index].option == now.option]
                settled[site] = same[0] if same else min(standing, key=lambda i: (self.choices[site][i].bytes, self.choices[site][i].harm))
        return settled

    def cheapest(self, limits: Limits | None = None) -> Picks:
        """The selection that spends least (bytes; or the summed shares of ``limits``), ties to the least harm."""
        spent = (lambda choice: self.load(choice, limits)) if limits else (lambda choice: float(choice.bytes))
        return self.best(lambda _, choice: (spent(choice), choice.harm))

    def best(self, price: Any) -> Picks:
        """The consistent selection whose summed ``price(site, choice)``, a tuple of numbers, is least."""
        totals: dict[str, list[tuple[float, ...]]] = {}
        for site in reversed(list(self.choices)):
            rows = []
            for choice in self.choices[site]:
                total = tuple(price(site, choice))
                for child in self.children.get(site, ()):
                    least = min(totals[child][index] for index in self.under(child, choice.option))
                    total = tuple(a + b for a, b in zip(total, least))
                rows.append(total)
            totals[site] = rows
        picks: Picks = {}
        for site in self.choices:
            picks[site] = min(self.allowed(site, picks), key=lambda index: totals[site][index])
        return picks

    def to_json(self) -> dict[str, Any]:
        """JSON value."""
        return {
            "fixed": self.fixed,
            "parents": self.parents,
            "facts": self.facts,
            "choices": {site: [dict(vars(choice)) for choice in found] for site, found in self.choices.items()},
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Table:
        """Inverse of ``to_json``; parts that an older table lacks are empty."""
        read = lambda choice: Choice(**{**choice, "given": tuple(choice.get("given", ()))})
        choices = {site: [read(choice) for choice in found] for site, found in value["choices"].items()}
        return cls(choices, value.get("fixed", {}), value.get("parents", {}), value.get("facts", {}))


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
            body = read_json(path)
        except ValueError as error:
            raise SettingError(f"plan {path}: must be a readable JSON file ({error}).") from None
        if not isinstance(body, dict) or body.get("format") != "modicum-plan" or body.get("version") != VERSION:
            raise SettingError(
                f"plan {path}: must be an object of format modicum-plan, version {VERSION}. Start from a plan.json that fit wrote."
            )
        if strange := sorted(body.keys() - {"format", "version", *(part.name for part in fields(cls))}):
            raise SettingError(f"plan {path}: has no {strange[0]!r}. Known: {', '.join(part.name for part in fields(cls))}.")
        options, cuts = body.get("options", {}), body.get("cuts", {})
        if not isinstance(options, dict) or not all(isinstance(text, str) for text in options.values()):
            raise SettingError(f"plan {path}: options must map site names to option texts.")
        if not isinstance(cuts, dict) or not all(isinstance(kept, list) and all(type(i) is int for i in kept) for kept in cuts.values()):
            raise SettingError(f"plan {path}: cuts must map site names to lists of kept group numbers.")
        if not isinstance(body.get("target"), str):
            raise SettingError(f"plan {path}: target must be a text.")
        notes = body.get("notes", [])
        if not isinstance(notes, list):
            raise SettingError(f"plan {path}: notes must be a list of texts.")
        return cls(body["target"], options, cuts, [str(note) for note in notes])
