"""The merge family: several models' tensors made into one, piece by piece."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch

from modicum.core.errors import ModelError, SettingError
from modicum.core.method import Method

Probe = Callable[[torch.Tensor, Sequence[torch.Tensor], "At"], torch.Tensor]
"""What is measured of a piece: the base's entries, the models', and where they stand."""


@dataclass(frozen=True)
class At:
    """Where a piece of a tensor stands, and what is known of the whole.

    ``first`` counts entries before it, ``shape`` is the whole tensor's; ``models`` names each model by what it holds, a second listing otherwise
    than the first; ``known`` is what ``survey`` gave; ``beside`` are statistics of the models' data (``gram``, ``fisher``) for this tensor.
    """

    name: str
    shape: tuple[int, ...]
    weights: tuple[float, ...]
    models: tuple[str, ...] = ()
    first: int = 0
    seed: int = 0
    known: Any = None
    beside: tuple[Mapping[str, torch.Tensor], ...] = ()
    depth: float = 0.0

    def knowing(self, known: Any) -> At:
        """The same, with what was measured."""
        return replace(self, known=known)

    def statistic(self, kind: str) -> list[torch.Tensor] | None:
        """One of the statistics of every model's data, None where no model has it. Raises ``ModelError`` where only some do."""
        found = [each[kind] for each in self.beside if kind in each]
        if found and len(found) < len(self.beside):
            raise ModelError(
                f"{self.name}: all models must have the statistic {kind} of it, or none, {len(found)} of {len(self.beside)} have. Gather the others."
            )
        return found or None

    def draws(self, model: int, count: int) -> np.ndarray:
        """Whole numbers (count,) uint16, of a counter: its key is the seed, the tensor and what the model holds, its place that of the piece."""
        words = f"{self.seed}/{self.name}/{self.models[model] if self.models else model}"
        key = int.from_bytes(hashlib.sha256(words.encode()).digest()[:16], "big")
        skipped = self.first % 16  # sixteen numbers are made of one count
        raw = np.random.Philox(key=key, counter=self.first // 16).random_raw(-(-(skipped + count) // 4))
        return raw.view(np.uint16)[skipped : skipped + count]


@dataclass(frozen=True)
class Total:
    """A statistic that is the sum of what ``values`` gives of each piece."""

    values: Probe


@dataclass(frozen=True)
class Largest:
    """By row of ``values`` (rows, entries) the entries of so many from the top: (rows, counts), exact, and nothing is sorted.

    A count of 0 gives infinity.
    """

    values: Probe
    counts: tuple[int, ...]


Survey = Generator[Total | Largest, torch.Tensor, Any]
"""Asks for one statistic after the other, each over all pieces, and returns what ``combine`` is to know."""


@dataclass(frozen=True, kw_only=True)
class Merge(Method):
    """Makes one tensor of several; files write ``combine``, and ``survey`` where it must know the whole before it sees a piece.

    Tensors come in float32, or float64 where they are stored in 32 bits or more, and are rounded once, to the dtype that is stored. What is
    made of an entry follows from the entries at its place and from ``at.known``, unless ``pieces`` is false: then tensors come whole.
    """

    # Whether tensors may come in pieces, flat; else they come whole, in their shape.
    pieces: ClassVar[bool] = True
    # Whether pieces must be whole rows of the tensor's first axis.
    rows: ClassVar[bool] = False
    # Whether so few passes over a piece are made that calls cost more than leaving the cache does: pieces are then twice as long.
    short: ClassVar[bool] = False
    # Whether the order of the models counts; where it does not the result is the same for each, to the bit.
    ordered: ClassVar[bool] = False
    # Whether the base's values are read at all, beside its layout.
    reads_base: ClassVar[bool] = True
    # How many models it takes.
    least: ClassVar[int] = 1
    most: ClassVar[int] = 1 << 30
    # A model's weight where none is said.
    weight: ClassVar[float] = 1.0
    # Whether weights are shares of one another: their sum must then be positive.
    shares: ClassVar[bool] = False
    # Statistics of each model's data that it is made of, by the names under which they come beside the tensors.
    statistics: ClassVar[tuple[str, ...]] = ()

    @property
    def evaluated(self) -> bool:
        """Whether validation data decide what it takes in."""
        return False

    @property
    def scope(self) -> str:
        """Over what ``survey`` measures: each ``tensor``, or the whole ``model``."""
        return "tensor"

    def check(self, weights: Sequence[float]) -> None:
        """Raise ``SettingError`` where these weights cannot be."""
        who, said = self.key().split("/")[1], ", ".join(f"{weight:g}" for weight in weights)
        if not self.least <= len(weights) <= self.most:
            many = f"at least {self.least}" if self.most >= 1 << 30 else f"{self.least} to {self.most}"
            many = f"{self.least}" if self.least == self.most else many
            raise SettingError(f"{who}: takes {many} models beside the base, got {len(weights)}.")
        if not all(math.isfinite(weight) for weight in weights):
            raise SettingError(f"{who}: weights must be finite, got {said}.")
        if self.shares and (sum(weights) <= 0 or min(weights) < 0):
            raise SettingError(f"{who}: weights are shares, none may be negative and their sum must be positive, got {said}.")

    def survey(self, models: int, entries: int) -> Survey:
        """Statistics over all ``entries`` of the scope that ``combine`` must know; none by default."""
        return None
        yield

    def shows(self, weights: Sequence[float]) -> bool:
        """Whether NaN or Inf in any input would be in what is made of it, so that inputs need no look of their own."""
        return False

    def at_once(
        self, base: torch.Tensor, others: Sequence[torch.Tensor], weights: Sequence[float], dtype: torch.dtype
    ) -> torch.Tensor | None:
        """The entries in the ``dtype`` that is stored, of tensors as they are stored, where one pass makes them; None where ``combine`` must."""
        return None

    def combine(self, base: torch.Tensor, others: Sequence[torch.Tensor], weights: Sequence[float], at: At) -> torch.Tensor:
        """The entries that are made of the base's and the models', all of one shape and dtype; inputs are untouched."""
        raise NotImplementedError


def counted(share: float, entries: int) -> int:
    """How many entries a share of them is: the nearest number, and at least one where the share is not 0."""
    return 0 if share == 0 else min(entries, max(1, round(share * entries)))


def mixed(tensors: Sequence[torch.Tensor], coefficients: Sequence[float]) -> torch.Tensor:
    """Their sum by fixed coefficients; what has none is left out, so that a single 1 gives that tensor to the bit, and a 1 comes first."""
    count = sorted(((coefficient != 1, place) for place, coefficient in enumerate(coefficients) if coefficient), key=lambda pair: pair[0])
    if not count:
        return torch.zeros_like(tensors[0])
    places = [place for _, place in count]
    first, rest = places[0], places[1:]
    if coefficients[first] != 1:
        made = tensors[first] * coefficients[first]
    elif rest:
        second, *rest = rest
        made = torch.add(tensors[first], tensors[second], alpha=coefficients[second])
    else:
        made = tensors[first].clone()
    for place in rest:
        made.add_(tensors[place], alpha=coefficients[place])
    return made if min(coefficients) >= 0 else with_signs(made, tensors, coefficients)


def with_signs(made: torch.Tensor, tensors: Sequence[torch.Tensor], coefficients: Sequence[torch.Tensor | float]) -> torch.Tensor:
    """The sum, whose zeros are negative where each tensor that counts has a negative zero: what is added times 0 would hide it."""
    flat = made.reshape(-1).numpy()
    places = np.flatnonzero(flat == 0)
    if not len(places):
        return made
    negative = np.ones(len(places), dtype=bool)
    for tensor, coefficient in zip(tensors, coefficients):
        value = tensor.reshape(-1).numpy()[places]
        factor = coefficient.reshape(-1).numpy()[places] if isinstance(coefficient, torch.Tensor) else coefficient
        negative &= (np.signbit(value) & (value == 0)) | (factor == 0)
    flat[places[negative]] = -0.0
    return made
