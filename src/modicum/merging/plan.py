"""A merge as a value: models, weights by layer, slices of layers."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from modicum.core.errors import SettingError, quoted

Weight = float | tuple[float, ...] | tuple[tuple[str, "Weight"], ...]
MOST = 10_000  # layers of a plan
_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True)
class Entry:
    """One model: its own base ``minus`` where it has another, its weight, and in a slice the layers ``first`` to ``last`` (without it)."""

    model: str
    weight: Weight | None = None
    minus: str | None = None
    layers: tuple[int, int] | None = None


@dataclass(frozen=True)
class Expert:
    """One expert of a mixture: a model, ``prompts`` like what it is for, and ``against`` like what it is not."""

    model: str
    prompts: tuple[str, ...] = ()
    against: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What is merged and how; ``notes`` say what another tool's file means otherwise here, ``tokenizer`` whose vocabulary the result has.

    With ``experts`` it is a mixture, ``active`` of them for each token, chosen as ``gate`` says.
    """

    base: str
    method: str
    models: tuple[Entry, ...] = ()
    slices: tuple[tuple[Entry, ...], ...] = ()
    dtype: str | None = None
    seed: int = 0
    tokenizer: str | None = None
    notes: tuple[str, ...] = field(default=())
    experts: tuple[Expert, ...] = ()
    active: int = 2
    gate: str = "hidden"

    @property
    def named(self) -> set[str]:
        """All models that it names."""
        entries = (*self.models, *(each for part in self.slices for each in part))
        return {
            self.base,
            *(each.model for each in entries),
            *(each.minus for each in entries if each.minus),
            *(each.model for each in self.experts),
        }


def at(weight: Weight, name: str, layers: int) -> float:
    """A weight for a tensor: a list is drawn over the layers from the first to the last, of patterns the first that fits counts."""
    if isinstance(weight, float):
        return weight
    if all(isinstance(each, float) for each in weight):
        anchors = [each for each in weight if isinstance(each, float)]
        found = _LAYER.search(name)
        place = (int(found[0]) / max(1, layers - 1) if found else 0.0) * (len(anchors) - 1)
        low = min(len(anchors) - 1, int(place))
        high = min(len(anchors) - 1, low + 1)
        return anchors[low] + (place - low) * (anchors[high] - anchors[low])
    for each in weight:
        if isinstance(each, tuple) and fnmatch.fnmatchcase(name, each[0]):
            return at(each[1], name, layers)
    raise SettingError(f"weight: must say what holds for {quoted(name)}, no pattern fits. Add '*'.")


def weight_of(value: Any, who: str) -> Weight:
    """A number, a list of numbers, or a table of patterns. Raises ``SettingError``."""
    if isinstance(value, dict) and value:
        return tuple((pattern, weight_of(each, f"{who} of {quoted(pattern)}")) for pattern, each in value.items())
    if isinstance(value, list) and value and len(value) <= MOST:
        return tuple(number(each, who) for each in value)
    return number(value, who)


def number(value: Any, who: str, *, whole: bool = False) -> float:
    """A finite number in a text. Raises ``SettingError``."""
    try:
        found = int(value) if whole else float(value)
        if math.isfinite(found) and abs(found) < 2**63:
            return found
    except (TypeError, ValueError, OverflowError):
        pass
    raise SettingError(f"{who}: must be a {'whole ' if whole else 'finite '}number, is {quoted(repr(value), 60)}.")


def text(value: Any, who: str) -> str:
    """A text. Raises ``SettingError``."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise SettingError(f"{who}: must be a text, is {quoted(repr(value), 60)}.")
    return value


def layer_range(value: Any, who: str) -> tuple[int, int]:
    """Two whole numbers, the second larger. Raises ``SettingError``."""
    if not isinstance(value, list) or len(value) != 2:
        raise SettingError(f"{who}: must be two whole numbers, such as [0, 8], is {quoted(repr(value), 60)}.")
    first, last = (int(number(each, who, whole=True)) for each in value)
    if not 0 <= first < last <= MOST:
        raise SettingError(f"{who}: must begin at 0 or later and end after it, at most at {MOST}, is {first} to {last}.")
    return first, last


def whole(entries: Sequence[Entry], who: str) -> tuple[Entry, ...]:
    """Models that are merged as they are. Raises ``SettingError`` where one has layers, which are of slices."""
    for each in entries:
        if each.layers is not None:
            raise SettingError(f"{who}: {each.model} must be merged whole, and names layers. Write it in slices.")
    return tuple(entries)


def aligned(entries: Sequence[Entry], who: str) -> tuple[Entry, ...]:
    """Sources of one slice, which must have equally many layers. Raises ``SettingError``."""
    counts = {each.layers[1] - each.layers[0] if each.layers else 0 for each in entries}
    if len(counts) != 1 or 0 in counts:
        raise SettingError(f"{who}: sources of a slice must all have layers, equally many; they have {sorted(counts)}.")
    return tuple(entries)


GATES = ("hidden", "embedding", "random")


def mixture_of(
    who: str, experts: Sequence[Expert], base: str, gate: str, active: Any, dtype: str | None, seed: int = 0, notes: tuple[str, ...] = ()
) -> Plan:
    """The plan of a mixture. Raises ``SettingError``."""
    if not experts:
        raise SettingError(f"{who}: must name experts, names none.")
    if gate not in GATES:
        raise SettingError(f"{who}: gate must be {', '.join(GATES)}, is {quoted(repr(gate))}.")
    count = int(number(active, f"{who}: active", whole=True))
    if not 1 <= count <= len(experts):
        raise SettingError(f"{who}: active must be from 1 to the number of experts, {len(experts)}, is {count}.")
    said = "attention, norms and embeddings are the base's: what experts have of their own there is left out"
    return Plan(base, "passthrough", dtype=dtype, seed=seed, notes=(*notes, said), experts=tuple(experts), active=count, gate=gate)
