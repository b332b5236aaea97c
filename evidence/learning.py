"""What the rows on going on learning share: tasks made of the digits, and how well a learner does on them."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Sequence
from typing import Any

import torch

from modicum.core.recipe import recipe
from modicum.learn.learning import Learnt, learn
from modicum.learn.tasks import Task
from scenes.digits import Conv, pictures

CHOOSING, ROWS = 1000, 400
PAIRS = ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9))


def rows(x: torch.Tensor, y: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Pictures as rows."""
    return [(x[place : place + 1], y[place : place + 1]) for place in range(len(y))]


def task(name: str, corruption: str | None, classes: Sequence[int], seed: int, part: str, parity: bool = False) -> Task:
    """Digits of some classes under a corruption; told by whether they are odd where ``parity``."""
    made = []
    for which, most in (("train", ROWS), (part, 10**9)):
        x, y = pictures(which, corruption, seed=seed)
        inside = torch.isin(y, torch.tensor(list(classes))).nonzero()[:, 0][:most]
        made.append(rows(x[inside], y[inside] % 2 if parity else y[inside]))
    return Task(name, *made)


def under(corruptions: Sequence[str], seed: int, part: str) -> list[Task]:
    """All ten digits, under one corruption after the other."""
    return [task(name, name, range(10), seed, part) for name in corruptions]


def split(seed: int, part: str, corruption: str | None = None, parity: bool = False) -> list[Task]:
    """Two digits after the other two."""
    return [task(f"{pair[0]} or {pair[1]}", corruption, pair, seed, part, parity) for pair in PAIRS]


def fresh(seed: int) -> torch.nn.Module:
    """The convolutional net before any training."""
    torch.manual_seed(seed)
    return Conv().eval()


def done(net: torch.nn.Module, tasks: Sequence[Task], method: Any, seed: int) -> tuple[Learnt, dict[str, Any]]:
    """What a learner gives, and the figures that every row reports."""
    made = learn(net, list(tasks), method=recipe("learn", method) if isinstance(method, str) else method, seed=seed)
    told = made.receipt
    figures = {
        "accuracy": told["mean"], "lost": statistics.mean(each["mean"] for each in told["lost"].values()),
        "same bits": float(all(told["same bits"].values())), "bytes": float(sum(told["bytes"])), "deltas": len(told["bytes"]),
    }  # fmt: skip
    if "unnamed" in told:
        figures["average incremental accuracy"] = statistics.mean(statistics.mean(row.values()) for row in told["unnamed"] if row)
    return made, figures


def row(name: str, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A row of the table."""
    return {"option": name, **{key: [each[key] for each in found] for key in found[0]}}


def once(make: Any, tasks: Any, method: str, seed: int, part: str) -> dict[str, Any]:
    """A method's figures by one seed."""
    return done(make(seed), tasks(seed, part), method, seed)[1]


def at_best(kept: Any, make: Any, tasks: Any, methods: Sequence[str], seeds: Sequence[int]) -> tuple[str, list[dict[str, Any]]]:
    """The method of the highest accuracy on validation pictures by a seed of its own, and its figures on test pictures."""
    tried = {
        method: kept(f"choosing {method}", functools.partial(once, make, tasks, method, CHOOSING, "validation"))["accuracy"]
        for method in methods
    }
    best = max(tried, key=tried.__getitem__)
    return best, [kept(f"{best}, seed {seed}", functools.partial(once, make, tasks, best, seed, "test")) for seed in seeds]
