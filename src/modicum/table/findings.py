"""What one measurement found, and the harm tables made of it: one for each target, menu and runtime, without another sweep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from modicum.core.method import Change
from modicum.core.option import KEEP
from modicum.core.unit import Site
from modicum.table.tried import Tried

# The site of choices over the whole model's depth.
DEPTH = "model"
# The choice of a weight whose block is left out.
GONE = "gone"
# What a cut's harm is multiplied by where no plans were judged: its error is large and lies in few directions. On the demo judged plans
# gave 2.4 for feed-forward channels and 1.5 for heads (``docs/architecture.md``).
CUT_PRIOR = 2.0


@dataclass
class Finding:
    """One option on one unit: harm in nats, None where its inputs or gradients were not seen; weight error relative and absolute (squared);
    harm where a cut was chosen, by the cut's option; ``bits`` per weight, and the ``least`` that the same error takes by the Gaussian reference
    (``table/waste.py``), None where it was not told.
    """

    harm: float | None
    relative: float
    distance: float
    under: dict[str, float] = field(default_factory=dict)
    bits: float | None = None
    least: float | None = None


@dataclass
class Structural:
    """One option of structure: what it leaves (groups kept, or blocks left out), its own harm, and modules whose biases it changes."""

    kept: list[int]
    blocks: list[str]
    harm: float
    biases: list[str] = field(default_factory=list)

    def change(self) -> Change:
        """What a target must hold of it, without values."""
        return Change(dropped=tuple(self.blocks), biases={module: torch.empty(0) for module in self.biases})


@dataclass
class Findings:
    """Everything a measurement found, by unit, by coupled cut, and by span; ``facts`` of a unit's loss surface (trace, eigenvalue);
    ``scales`` by which each kind of option's harm is multiplied, and how the harms then ``rank`` random plans; what ``plain`` options really lose, by
    target and option; steps by which rows are ``raised``, in quarters of an octave.
    """

    units: dict[str, dict[str, Finding]] = field(default_factory=dict)
    energy: dict[str, float] = field(default_factory=dict)
    cuts: dict[str, dict[str, Structural]] = field(default_factory=dict)
    spans: dict[str, Structural] = field(default_factory=dict)
    facts: dict[str, dict[str, float]] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)
    scales: dict[str, float] = field(default_factory=dict)
    rank: dict[str, Any] | None = None
    plain: dict[str, dict[str, Tried]] = field(default_factory=dict)
    raised: dict[str, list[int]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """JSON value."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Findings:
        """Inverse of ``to_json``."""
        units = {unit: {text: Finding(**found) for text, found in options.items()} for unit, options in value["units"].items()}
        cuts = {site: {text: Structural(**found) for text, found in options.items()} for site, options in value["cuts"].items()}
        spans = {text: Structural(**found) for text, found in value["spans"].items()}
        plain = {target: {name: Tried(**found) for name, found in tried.items()} for target, tried in value.get("plain", {}).items()}
        return cls(units, value["energy"], cuts, spans, value["facts"], value["events"], value["scales"], value["rank"], plain,
                   value.get("raised", {}))  # fmt: skip

    @property
    def solves_tables(self) -> bool:
        """Whether columns of tables made up for each other; an earlier version's did under other options alone."""
        return any("moment=felt" in text for options in self.units.values() for text in options)

    def know(self, site: Site, text: str) -> bool:
        """Whether an option was measured on every unit of a site; an earlier version knew fewer."""
        return text == KEEP or all(text in self.units.get(unit.name, {}) for unit in site.units)

    def harm(self, unit: str, text: str, cut: str) -> float:
        """Harm of an option on a unit, under a cut's option where one was chosen.

        A unit whose inputs or gradients were not seen takes the median energy of those that were, times its relative weight error.
        """
        if text == KEEP:
            return 0.0
        found = self.units[unit][text]
        if found.harm is None:
            typical = sorted(self.energy.values())[len(self.energy) // 2] if self.energy else 1.0
            return found.relative * typical
        return found.under.get(cut, found.harm)


def kind_of(site: str, option: str) -> str:
    """The kind of an option, for its scale: methods and bits, for a cut what it cuts."""
    words = [" ".join(word for word in step.split() if "=" not in word or word.startswith("bits=")) for step in option.split(" | ")]
    what = site.rpartition(":")[2] if ":" in site and site.rpartition(":")[2] in ("ffn", "heads", "experts") else ""
    return " | ".join(words) + (f" on {what}" if what else "")


def prior_of(kind: str) -> float:
    """The scale of a kind of option before any plan was judged."""
    return CUT_PRIOR if kind.endswith((" on ffn", " on heads")) else 1.0
