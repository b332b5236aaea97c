"""What must fit: file bytes, or bits per weight over the original number of parameters."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from modicum.core.errors import BudgetError

_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


@dataclass(frozen=True)
class Budget:
    """At most ``size`` bytes of weight files, or ``bpw`` bits per original parameter (tied parameters once); exactly one is set."""

    size: int | None = None
    bpw: float | None = None

    def __post_init__(self) -> None:
        if (self.size is None) == (self.bpw is None):
            raise BudgetError("budget: exactly one must be given, a size or bits per weight. Pass --size 4.5MB or --bpw 4.")
        value = self.size if self.size is not None else self.bpw
        if value is None or not 0 < value < float("inf"):
            raise BudgetError(f"budget: must be a positive number, got {value}.")

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read ``4.5MB``, ``2GiB`` or ``4.5bpw``. Raises ``BudgetError``."""
        found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Z]+)\s*", text)
        if found and found[2].lower() == "bpw":
            return cls(bpw=float(found[1]))
        if found and found[2].lower() in _UNITS:
            return cls(size=int(Fraction(found[1]) * _UNITS[found[2].lower()]))
        raise BudgetError(f"budget: must be a size such as 4.5MB or 2GiB, or bits per weight such as 4bpw, got {text!r}.")

    def bytes(self, parameters: int) -> int:
        """Largest number of bytes allowed for a model of ``parameters`` parameters."""
        return self.size if self.size is not None else int(self.bpw * parameters / 8)  # type: ignore[operator]

    def __str__(self) -> str:
        return f"{self.bpw:g} bpw" if self.bpw is not None else readable(self.size or 0)


def parse_size(text: str) -> int:
    """Bytes of a size such as ``4GB``. Raises ``BudgetError``."""
    size = Budget.parse(text).size
    if size is None:
        raise BudgetError(f"size: must be in bytes, such as 4GB, got {text!r}.")
    return size


def readable(size: float) -> str:
    """Bytes as people read them, in decimal units."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= scale:
            return f"{size / scale:.3f} {unit}"
    return f"{size:.0f} B"
