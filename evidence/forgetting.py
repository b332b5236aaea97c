"""What the rows on forgetting share: a digit taken out of a trained net, held against three nets that never saw it."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Sequence
from typing import Any

import torch

from kept import Kept
from modicum.forget.forgetting import forget
from modicum.forget.judged import attacked, distance
from modicum.train.rows import row_loss
from scenes.digits import accuracy, pictures
from scenes.forgotten import opened, without

CHOOSING = 1000
REFERENCES = 3
DATA = (
    "A convolutional net of 10,000 parameters trained on 1,000 digits; one digit, of another class in each seed, is to be forgotten. Settings are "
    "chosen on a digit and on validation pictures of their own; judged on 497 test pictures against three nets trained without the digit"
)


def gone(seed: int) -> int:
    """The digit that a seed forgets."""
    return 0 if seed == CHOOSING else (3, 5, 8, 1, 6)[seed]


def rows(x: torch.Tensor, y: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Pictures as rows."""
    return [(x[place : place + 1], y[place : place + 1]) for place in range(len(y))]


def told(net: torch.nn.Module, references: Sequence[torch.nn.Module], digit: int, part: str) -> dict[str, Any]:
    """Accuracy on pictures of the digit, trained on and new, and of the others; the attack; and the divergence from the references."""
    (x, y), (new, labels) = pictures("train"), pictures(part)
    seen, unseen = rows(x[y == digit], y[y == digit]), rows(new[labels == digit], labels[labels == digit])
    return {
        "forget": accuracy(net, x[y == digit], y[y == digit]), "retain": accuracy(net, x[y != digit], y[y != digit]),
        "test": accuracy(net, new[labels != digit], labels[labels != digit]), "attack": attacked(net, seen, unseen, row_loss),
        "divergence": statistics.mean(distance(net, other, rows(new[labels != digit], labels[labels != digit])) for other in references),
    }  # fmt: skip


def once(method: str, seed: int, part: str, relapse: bool = False) -> dict[str, Any]:
    """What is known after a method, of a net trained by the seed; without one, of the nets that never saw the digit. ``@ 4`` is the goal."""
    digit = gone(seed)
    references = [opened(without(gone=digit, seed=100 + 10 * seed + place)) for place in range(REFERENCES)]
    net, (x, y) = opened(without(seed=seed)), pictures("train")
    if not method:
        each = [told(one, references, digit, part) for one in references]
        return {name: statistics.mean(one[name] for one in each) for name in each[0]} | {"gap": 0.0}
    found: dict[str, Any] = {}
    if method != "nothing":
        name, _, goal = method.partition(" @ ")
        sets = rows(x[y == digit], y[y == digit]), rows(x[y != digit], y[y != digit])
        made = forget(net, *sets, method=name, goal=float(goal or 6), relapse=relapse, seed=seed)
        net, found = made.module, {"comes back": made.receipt.get("comes back"), "bytes": made.receipt["bytes"]}
    mine, theirs = told(net, references, digit, part), once("", seed, part)
    return mine | {"gap": sum(abs(mine[name] - theirs[name]) for name in ("forget", "retain", "test"))} | found


GOALS = (2.0, 3.0, 4.0, 6.0)
ASCENTS = [f"ascent rate={rate:g} retain=0 steps=200 @ {goal:g}" for rate in (3e-5, 1e-4, 3e-4, 1e-3) for goal in GOALS]


def at_best(kept: Kept, methods: Sequence[str], seeds: Sequence[int], relapse: bool = False) -> list[dict[str, Any]]:
    """What the method of the least gap on validation pictures gives, by seed."""
    tried = {method: kept(f"choosing {method}", functools.partial(once, method, CHOOSING, "validation"))["gap"] for method in methods}
    best = min(tried, key=tried.__getitem__)
    return [kept(f"{best}, seed {seed}", functools.partial(once, best, seed, "test", relapse)) | {"method": best} for seed in seeds]


def row(name: str, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A row of the table."""
    names = {
        "gap": "gap to retraining", "forget": "accuracy on the digit", "retain": "accuracy on what stays", "test": "accuracy on new pictures",
        "attack": "attack", "divergence": "divergence from retraining",
    }  # fmt: skip
    return {"option": name, **{told: [each[key] for each in found] for key, told in names.items()}}
