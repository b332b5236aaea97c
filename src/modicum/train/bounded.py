"""What is added within a budget: trained numbers, bytes of the delta, and memory while it is learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from modicum.core.budget import Budget, readable
from modicum.core.errors import BudgetError, SettingError
from modicum.core.memory import own_memory, trim
from modicum.core.parametrization import Parametrization
from modicum.core.plan import Limits
from modicum.data.splits import Batch
from modicum.sweep.modes import seeded
from modicum.train.auto import ENTRY
from modicum.train.loop import blocks, joined
from modicum.train.objectives import Objective
from modicum.train.settings import Loop
from modicum.train.trained import Trained
from modicum.work.meter import Meter

# Moments that the optimizer makes of each trained number at its first update, and what allocators keep beyond what was asked, as a share.
_MOMENTS, _SLACK = 8, 0.05


def limits(budget: Budget | None, parameters: int) -> dict[str, float]:
    """What may be spent beside a model of so many parameters: ``values`` that are trained, and ``bytes`` of files."""
    found: dict[str, float] = {}
    if budget is not None and budget.params is not None:
        found["values"] = int(budget.params * parameters)
    if budget is not None and budget.size is not None:
        found["bytes"] = budget.size
    return found


def require_ranks(trained: Trained) -> None:
    """Raise ``SettingError`` where a method's rank is above that of every weight that it trains; a smaller weight among others takes its own."""
    inner: dict[Parametrization, int] = {}
    for place in trained.places.values():
        if (factor := place.state.trained.get("right")) is not None and hasattr(place.method, "rank"):
            inner[place.method] = max(inner.get(place.method, 0), factor.shape[0])
    for method, most in inner.items():
        if most < (rank := method.rank):  # type: ignore[attr-defined]
            raise SettingError(f"{method.key()}: rank must be at most {most}, that of the largest weight that it trains, is {rank}.")


def require_within(trained: Trained, most: Limits) -> None:
    """Raise ``BudgetError`` where a method trains or stores more than it may."""
    beside = sum(tensor.nbytes for each in trained.asides for tensor in each.state.trained.values())
    stored = sum(form.nbytes + ENTRY for form in trained.forms().values()) + beside
    for what, spent, word in (("values", trained.count, "trained numbers"), ("bytes", stored, "bytes")):
        if spent > most.get(what, spent):
            raise BudgetError(
                f"adapt: what is added may have {most[what]:,.0f} {word}, and has {spent:,}. Lower its rank or share, or take --method auto."
            )


def fitting(
    module: nn.Module, trained: Trained, rows: Sequence[Batch], loop: Loop, memory: int, objective: Objective, *, seed: int = 0
) -> Loop:
    """The loop with as many sequences computed at a time as ``memory`` (bytes of this process) has room for, found by trying the longest.

    Each try is made where the one before it says that there is room. Raises ``BudgetError`` with the smallest figure that would do.
    """
    longest = sorted(rows, key=lambda row: -max(value.numel() for value in (row.values() if isinstance(row, dict) else row)))
    moments, fitting_one = _MOMENTS * trained.count, 0
    before, together = own_memory(), 1
    while True:
        needed = int((_peak(module, trained, longest[:together], objective, loop, seed) + moments) * (1 + _SLACK))
        if needed <= memory:
            fitting_one = together
        elif together == 1:
            raise BudgetError(
                f"memory: must be at least {readable(needed)} to train one sequence at a time, is {readable(memory)}. "
                f"Allow more{'' if loop.recompute else ', or pass --recompute'}."
            )
        else:
            break
        each = max(0, needed - before) / together
        if 2 * together > min(loop.together or loop.batch, len(longest)) or before + 2 * together * each > memory:
            break
        together *= 2
    for parameter in trained.parameters():
        parameter.grad = None
    return replace(loop, together=fitting_one)


def _peak(module: nn.Module, trained: Trained, rows: Sequence[Batch], objective: Objective, loop: Loop, seed: int) -> int:
    """Most memory of this process while sequences are computed together, forward and back."""
    trim()
    meter, training = Meter(), module.training
    module.train()
    try:
        with meter.stage("trying"), seeded(seed), torch.enable_grad(), blocks(module, trained, loop):
            for part in joined(rows, len(rows)):
                objective(module, part)[0].sum().backward()
    finally:
        module.train(training)
    return int(meter.stages["trying"]["peak_bytes"])
