"""What the caller asked for, checked before any work."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from modicum.core.budget import Budget
from modicum.core.errors import BudgetError, SettingError, near
from modicum.core.option import Option
from modicum.core.plan import Plan

# Widths that all readers agree on, so that a plan loads wherever the target loads.
MENUS = {"transformers": ("int2", "int4", "int8"), "modicum": ("int2", "int3", "int4", "int5", "int6", "int8")}


@dataclass(frozen=True, kw_only=True)
class Request:
    """One run's settings; the same names as on the command line."""

    budget: Budget | None = None
    method: Option | None = None
    plan: Plan | None = None
    target: str | None = None
    data: str | None = None
    samples: int = 128
    tokens: int = 512
    batch: int = 8
    test_samples: int = 64
    menu: tuple[Option, ...] | None = None
    group: int = 64
    ram: int | None = None
    seed: int = 0
    device: str = "auto"
    keep: tuple[str, ...] = ()
    allocator: str = "integer_program"
    harm: str = "fisher"
    gradient_samples: int = 16
    out: Path | None = None
    overwrite: bool = False
    dry_run: bool = False
    allow_pickle: bool = False
    trust_remote_code: bool = False
    allow_fallback: bool = field(default=False)

    def __post_init__(self) -> None:
        given = [name for name in ("budget", "method", "plan") if getattr(self, name) is not None]
        if len(given) != 1:
            came = " and ".join(given) or "nothing"
            raise BudgetError(f"fit: exactly one of a budget, a method or a plan must be given, got {came}. Pass --size 4.5MB or --bpw 4.")
        from modicum.allocate import ALLOCATORS
        from modicum.export import TARGETS

        if self.target is not None and self.target not in TARGETS:
            raise SettingError(f"target {self.target!r}: is not known. {near(self.target, TARGETS)}")
        if self.allocator not in ALLOCATORS:
            raise SettingError(f"allocator {self.allocator!r}: is not known. {near(self.allocator, ALLOCATORS)}")
        if self.harm not in ("fisher", "error"):
            raise SettingError(f"harm {self.harm!r}: must be fisher or error.")
        for name in ("samples", "tokens", "batch", "test_samples", "gradient_samples"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name}: must be at least 1, got {getattr(self, name)}.")

    def options(self, target: str) -> tuple[Option, ...]:
        """The menu for a target; ``intN`` takes the group of the request."""
        if self.menu is not None:
            return self.menu
        return tuple(Option.parse(f"{name} group={self.group}") for name in MENUS[target])

    def fingerprint(self, model_hash: str, data_hash: dict[str, str]) -> str:
        """Hash of everything that decides the result: an interrupted run continues only where it is equal."""
        skipped = {"out", "overwrite", "dry_run", "ram", "device"}
        words = {f.name: str(_plain(getattr(self, f.name))) for f in fields(self) if f.name not in skipped}
        return hashlib.sha256(json.dumps([words, model_hash, data_hash], sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, Plan):
        return [value.target, sorted(value.options.items()), sorted(value.cuts.items())]
    return [str(item) for item in value] if isinstance(value, tuple) else value
