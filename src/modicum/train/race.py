"""Which method for a budget: a short race by successive halving, judged on the validation part."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from modicum.core.budget import Budget
from modicum.core.errors import BudgetError, ModelError, SettingError
from modicum.core.progress import Quiet
from modicum.train.accounts import Account, beginners, exceeded, within
from modicum.train.learning import learn
from modicum.train.settings import Loop
from modicum.train.subject import Subject

# Shares of the updates that the rounds of a race take; after each the better half goes on, anew and for longer.
_ROUNDS = (1 / 16, 1 / 8)
_FEWEST = 5


def candidates(budget: Budget, account: Account) -> tuple[list[str], dict[str, str]]:
    """Methods that fit the budget, with their settings, and why the others do not. Raises ``BudgetError`` where none does."""
    found, left = [], {}
    for name in beginners():
        try:
            method = within(name, budget, account)
            if exceeded(account.of(method), budget, account) is None:
                found.append(str(method))
        except (BudgetError, SettingError) as error:
            left[name] = str(error)
    if not found:
        sizes = [why.partition(": ")[2] for why in left.values() if "takes at least" in why]
        raise BudgetError(f"budget {budget}: no method meets it; {min(sizes, key=_least, default='none can be put on these weights')}")
    return found, left


def _least(why: str) -> float:
    return float(why.partition("parameters")[0].rpartition(" and ")[2].partition(" %")[0])


def race(subject: Subject, found: list[str], loop: Loop, folder: Path, progress: Quiet | None = None) -> dict[str, Any]:
    """Train all for a few updates, and the better half again for longer; what each lost on the validation part, and the best.

    One that fails is out, and why is told.
    """
    shown, rounds, racing = progress or Quiet(), [], list(found)
    for place, share in enumerate(_ROUNDS):
        if len(racing) == 1:
            break
        short, lost = replace(loop, steps=max(_FEWEST, round(share * loop.steps))), dict[str, Any]()
        for method in racing:
            try:
                made = learn(
                    subject.fresh(), method, subject.splits.calibration, subject.splits.validation, short, objective=subject.objective,
                    keep=folder / f"round {place}" / method, progress=progress,
                )  # fmt: skip
                lost[method] = sum(loss for loss, _ in made.test) / max(1, sum(count for _, count in made.test))
            except (ModelError, SettingError) as error:
                lost[method] = str(error)
            shown.say(f"race, {short.steps} updates: {method}: {lost[method]}")
        there = [method for method in racing if isinstance(lost[method], float)]
        if not there:
            raise ModelError(f"race: at least one method must train, none does: {next(iter(lost.values()))}")
        racing = sorted(there, key=lambda method: (lost[method], method))[: max(1, (len(there) + 1) // 2)]
        rounds.append({"updates": short.steps, "lost": lost})
    return {"rounds": rounds, "chosen": racing[0]}
