"""What the caller asked for, checked before any work."""

from __future__ import annotations

from dataclasses import dataclass

from modicum.core.budget import Budget
from modicum.core.errors import BudgetError, SettingError, near
from modicum.core.option import Option
from modicum.core.plan import Plan
from modicum.core.settings import param
from modicum.measure.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Request(Settings):
    """One fit's settings."""

    budget: Budget | None = param(None, "what must fit; several budgets hold together")
    method: Option | None = param(None, "instead of a budget: one option everywhere")
    plan: Plan | None = param(None, "instead of a budget: options by site")
    allocator: str = param("auto", "how the budget is divided")
    workers: str = param("1", "processes that judge candidates side by side, or ray")
    context: int = param(2048, "tokens the memory budget leaves room for")
    batch: int = param(1, "sequences the memory, speed and latency budgets are for")
    dry_run: bool = param(False, "only say what would be done and what is within reach")

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in ("budget", "method", "plan") if getattr(self, name) is not None]
        if len(given) != 1:
            came = " and ".join(given) or "nothing"
            raise BudgetError(f"fit: exactly one of a budget, a method or a plan must be given, got {came}. Pass --size 4.5MB or --bpw 4.")
        from modicum.allocate import ALLOCATORS

        if self.allocator not in ALLOCATORS:
            raise SettingError(f"allocator {self.allocator!r}: is not known. {near(self.allocator, ALLOCATORS)}")
        for name in ("context", "batch"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name}: must be at least 1, got {getattr(self, name)}.")
        if self.workers != "ray" and not (self.workers.isdigit() and int(self.workers) >= 1):
            raise SettingError(f"workers: must be a number of processes or ray, got {self.workers!r}.")
