"""What must fit: bytes of files, stored values, multiply-adds, quality lost, run-time memory, time; one or several of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import partial
from typing import Any

from modicum.core.errors import BudgetError
from modicum.core.settings import param

_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
# Multiply-adds by unit, and the fewest that are taken for a number of them.
_COUNTS = {"": 1.0, "%": 0.01, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_FEWEST = 1000
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}


@dataclass(frozen=True)
class Budget:
    """What the result may spend; at least one is set, and all that are set hold.

    ``size`` bytes of weight files; ``bpw`` bits of them per original parameter (tied parameters once); ``params`` stored weight values (dense
    entries, codes, nonzeros, low-rank factors; scales and tables apart) as a share of the original's; ``macs`` multiply-adds of one forward pass in
    the target's runtime, a share of the original's or, above 1, their number; ``loss`` the share by which held-out perplexity may rise; ``memory``
    bytes in the target's runtime: weights as it holds them, cache and activations; ``speed`` times the original's; ``latency`` seconds of one
    forward pass.
    """

    size: int | None = param(None, "bytes of the weight files, such as 4.5MB or 2GiB", metavar="SIZE", group="budget")
    bpw: float | None = param(None, "bits of the weight files per original weight", metavar="BITS", group="budget")
    params: float | None = param(None, "stored weight values, such as 60%; scales and tables apart", metavar="SHARE", group="budget")
    macs: float | None = param(
        None, "multiply-adds of one forward pass on one of the sequences, a share such as 60% or a number such as 5G", metavar="SHARE",
        group="budget",
    )  # fmt: skip
    loss: float | None = param(
        None, "rise of held-out perplexity, such as 1%; the smallest result within it", metavar="SHARE", group="budget"
    )
    memory: int | None = param(
        None, "memory in the target's runtime, with cache and activations, such as 2GiB", metavar="SIZE", group="budget"
    )
    speed: float | None = param(None, "times the original's speed in the target's runtime, such as 1.5x", metavar="FACTOR", group="budget")
    latency: float | None = param(None, "time of one forward pass, such as 20ms", metavar="TIME", group="budget")

    def __post_init__(self) -> None:
        given = {field.name: getattr(self, field.name) for field in fields(self) if getattr(self, field.name) is not None}
        if not given:
            raise BudgetError("budget: at least one must be given, none came. Pass --size 4.5MB or --bpw 4.")
        for name, value in given.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise BudgetError(f"{name}: must be a positive number, got {value}.")
        if self.params is not None and self.params > 1:
            raise BudgetError(
                f"params: must be a share of the original's values, at most 1, which is 100 %, got {self.params:g}. "
                f"Write {self.params:g}% if that is meant."
            )
        if self.macs is not None and 1 < self.macs < _FEWEST:
            raise BudgetError(
                f"macs: must be a share of the original's multiply-adds, at most 1, which is 100 %, or their number, got {self.macs:g}. "
                f"Write {self.macs:g}% if that is meant, or the whole number, such as 5G."
            )
        if self.speed is not None and self.speed < 1:
            raise BudgetError(
                f"speed: must be at least the original's, 1x, got {self.speed:g}x. Write {1 / self.speed:.3g}x if that share of its time is meant."
            )

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read ``4.5MB``, ``2GiB`` or ``4.5bpw``. Raises ``BudgetError``."""
        found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Z]+)\s*", text)
        if found and found[2].lower() == "bpw":
            return cls(bpw=float(found[1]))
        if found and found[2].lower() in _UNITS:
            return cls(size=int(Fraction(found[1]) * _UNITS[found[2].lower()]))
        raise BudgetError(f"budget: must be a size such as 4.5MB or 2GiB, or bits per weight such as 4bpw, got {text!r}.")

    @classmethod
    def of(cls, **words: Any) -> Budget | None:
        """Budgets as callers write them, texts or numbers, or None where none is given. Raises ``BudgetError``."""
        readers: dict[str, Callable[[str], Any]] = {
            "size": parse_size, "bpw": _number, "params": _share, "macs": _work, "loss": _loss, "memory": partial(parse_size, who="memory"),
            "speed": _times, "latency": _seconds,
        }  # fmt: skip
        read = lambda name, word: readers[name](word) if isinstance(word, str) else _plain(name, word)
        given: dict[str, Any] = {name: read(name, word) for name, word in words.items() if word is not None}
        return cls(**given) if given else None

    def together(self, other: Budget | None) -> Budget:
        """Both budgets. Raises ``BudgetError`` where one kind stands in both."""
        if other is None:
            return self
        mine, theirs = self._given(), other._given()
        if twice := sorted(mine.keys() & theirs.keys()):
            raise BudgetError(f"{twice[0]}: must be given once, was given twice. Leave one out.")
        return Budget(**mine, **theirs)

    def _given(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self) if getattr(self, field.name) is not None}

    def bytes(self, parameters: int) -> int | None:
        """Largest number of bytes of files for a model of ``parameters`` parameters, or None where files are free."""
        bounds = [bound for bound in (self.size, None if self.bpw is None else int(self.bpw * parameters / 8)) if bound is not None]
        return min(bounds, default=None)

    def only_bytes(self, parameters: int) -> int | None:
        """Largest number of bytes of files, or None where something else is bounded."""
        return None if self._given().keys() - {"size", "bpw"} else self.bytes(parameters)

    def multiplications(self, original: int) -> float:
        """Most multiply-adds of one forward pass where the original takes ``original``; infinite where they are free."""
        return float("inf") if self.macs is None else self.macs * original if self.macs <= 1 else self.macs

    def __str__(self) -> str:
        words = {
            "size": readable, "bpw": lambda value: f"{value:g} bpw", "params": lambda value: f"{100 * value:g} % of parameters",
            "macs": lambda value: f"{100 * value:g} % of multiply-adds" if value <= 1 else f"{many(value)} multiply-adds",
            "loss": lambda value: f"loss {100 * value:g} %", "memory": lambda value: f"{readable(value)} of memory",
            "speed": lambda value: f"{value:g}x speed", "latency": lambda value: f"{1000 * value:g} ms",
        }  # fmt: skip
        return " and ".join(words[name](value) for name, value in self._given().items())


def parse_size(text: str, who: str = "size") -> int:
    """Bytes of a size such as ``4GB``. Raises ``BudgetError``."""
    try:
        size = Budget.parse(text).size
    except BudgetError as error:
        why = str(error).partition(": ")[2].replace(", or bits per weight such as 4bpw", "")
        raise BudgetError(f"{who}: {why}") from None
    if size is None:
        raise BudgetError(f"{who}: must be in bytes, such as 4GB, got {text!r}.")
    return size


def _number(text: str) -> float:
    try:
        return float(text.lower().removesuffix("bpw"))
    except ValueError:
        raise BudgetError(f"bpw: must be a number such as 4.5, got {text!r}.") from None


def _share(text: str, who: str = "params") -> float:
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(%?)\s*", text)
    if not found:
        raise BudgetError(f"{who}: must be a share such as 60% or 0.6, got {text!r}.")
    value = float(found[1]) / (100 if found[2] else 1)
    if value > 1 and not found[2]:
        raise BudgetError(f"{who}: a share above 1 needs a sign, got {text!r}. Write {found[1]}%, or {100 * value:g}% if that is meant.")
    return value


def _loss(text: str) -> float:
    if re.fullmatch(r"\s*0*1(\.0*)?\s*", text):
        raise BudgetError(f"loss: a loss of 1 needs a sign, got {text!r}. Write 1%, or 100% if that is meant.")
    return _share(text, "loss")


def _work(text: str) -> float:
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE]\+?[0-9]+)?)\s*([kKMGT%]?)\s*", text)
    if not found:
        raise BudgetError(f"macs: must be a share such as 60% or 0.6, or a number of multiply-adds such as 5e9 or 5G, got {text!r}.")
    if found[2] == "%" and float(found[1]) > 100:
        raise BudgetError(f"macs: must be at most the original's multiply-adds, 100%, got {text!r}.")
    return float(found[1]) * _COUNTS[found[2]]


def _plain(name: str, value: Any) -> Any:
    """A number as it stands. Raises ``BudgetError`` for a share that can be read in two ways."""
    if name in ("params", "loss") and isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value < float("inf"):
        (_share if name == "params" else _loss)(f"{value:g}")
    return value


def _times(text: str) -> float:
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*x?\s*", text)
    if not found:
        raise BudgetError(f"speed: must be a factor such as 1.5x, got {text!r}.")
    return float(found[1])


def _seconds(text: str) -> float:
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-zµ]+)\s*", text)
    if not found or found[2] not in _SECONDS:
        raise BudgetError(f"latency: must be a time such as 20ms, got {text!r}.")
    return float(found[1]) * _SECONDS[found[2]]


def many(count: float) -> str:
    """A large number as people read it."""
    for unit, scale in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= scale:
            return f"{count / scale:.3f} {unit}"
    return f"{count:.0f}"


def readable(size: float) -> str:
    """Bytes as people read them, in decimal units."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= scale:
            return f"{size / scale:.3f} {unit}"
    return f"{size:.0f} B"


def every(budgets: Iterable[Budget | None]) -> Budget | None:
    """All budgets together, or None where there is none. Raises ``BudgetError`` where one kind is given twice."""
    total: Budget | None = None
    for budget in budgets:
        total = budget if total is None else total.together(budget)
    return total
