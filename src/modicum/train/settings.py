"""Settings of a training; nothing heavy is imported for them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from modicum.core.errors import SettingError
from modicum.core.settings import param, require

COSINE, FREE = "cosine", "free"
# Targets whose files a training writes.
TARGETS = ("modicum", "transformers")


@dataclass(frozen=True, kw_only=True)
class Loop:
    """Settings of a training: updates, their size, and what each is made of."""

    steps: int = param(200, "updates", between=(1, 10**9), metavar="N", group="method")
    rate: float = param(
        0.0,
        "learning rate at its highest, of AdamW; each method's own where 0",
        between=(0.0, 1e3),
        metavar="X",
        group="method",
    )
    schedule: str = param(
        COSINE,
        "how the rate goes on after its rise: down a cosine, or constant while what is learnt is an average (free)",
        choices=(COSINE, FREE),
        metavar="NAME",
        group="method",
    )
    batch: int = param(8, "sequences that an update is made of", between=(1, 10**6), metavar="N", group="data")
    together: int = param(0, "sequences computed at a time, all of an update's where 0", between=(0, 10**6), metavar="N", group="machine")
    recompute: bool = param(False, "compute activations again in the backward pass instead of keeping them", group="machine")
    warmup: float = param(0.05, "share of the updates in which the rate rises", between=(0.0, 1.0), metavar="X", group="method")
    clip: float = param(1.0, "largest norm of an update's gradient", between=(0.0, 1e9), metavar="X", group="method")
    decay: float = param(0.0, "weight decay", between=(0.0, 10.0), metavar="X", group="method")
    seed: int = param(0, "seed of all chance", between=(0, 2**63 - 1), metavar="N", group="data")
    every: int = param(50, "updates after which all is kept to resume from", between=(1, 10**9), metavar="N", group="machine")

    def __post_init__(self) -> None:
        require(self)

    def at(self, step: int, own: float = 1e-3) -> float:
        """Learning rate of update ``step``, counted from 0, of what a method trains whose ``own`` rate that is."""
        highest = self.rate or own
        rising = max(1, round(self.warmup * self.steps))
        if step < rising:
            return highest * (step + 1) / rising
        if self.schedule == FREE:
            return highest
        return highest * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, self.steps - rising)))


def require_target(target: str) -> None:
    """Raise ``SettingError`` for a target that no training writes."""
    if target not in TARGETS:
        raise SettingError(f"target: must be {' or '.join(TARGETS)}, got {target!r}. Export what was written for another.")
