"""What learning on is worth: every task after every other, what was lost since each was learnt, and whether answers are the same bits."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from modicum.learn.learner import Learner, Learning
from modicum.learn.tasks import Task
from modicum.numerics.interval import interval
from modicum.train.rows import stacked, together


@dataclass(frozen=True)
class Judged:
    """At one time: of each task each row's score, and its answers; and the share of all rows told right where nobody names the task."""

    scores: dict[str, list[float]]
    answers: dict[str, torch.Tensor]
    unnamed: dict[str, float]


def judged(learner: Learner, learning: Learning, tasks: Sequence[Task]) -> Judged:
    """Judge every task as it is answered at this time; one that was not learnt yet as the last expert does, or the model as it was."""
    scores, answers, unnamed = dict[str, list[float]](), dict[str, torch.Tensor](), dict[str, float]()
    for task in tasks:
        last = len(learning.experts) - 1 if learning.experts and not learner.apart else None
        with learning.answering(learning.of.get(task.name, last)) as module:
            scores[task.name], answers[task.name] = task.right(module), task.answers(module)
    for task in (task for task in tasks if task.name in learning.of and task.classes is not None):
        told = [learner.answers(learning, batch) for batch in together(task.test)]
        if all(each is not None for each in told):
            right = torch.cat(told) == stacked(task.test)[-1].reshape(-1)  # type: ignore[arg-type, index]
            unnamed[task.name] = float(right.float().mean())
    return Judged(scores, answers, unnamed)


def summary(rows: Sequence[Judged], tasks: Sequence[Task]) -> dict[str, Any]:
    """The matrix of mean scores (time, task), the first time before any was learnt; what is lost is told so that more is worse."""
    sign = -1.0 if tasks[0].classes is None else 1.0
    lost, alike = {}, {}
    for place, task in enumerate(tasks):
        old, new = rows[place + 1], rows[-1]
        differences = [sign * (before - after) for before, after in zip(old.scores[task.name], new.scores[task.name])]
        mean, low, high = interval(differences)
        lost[task.name] = {"mean": mean, "interval": [low, high], "rows": len(differences)}
        alike[task.name] = all(torch.equal(old.answers[task.name], row.answers[task.name]) for row in rows[place + 1 :])
    matrix = [[statistics.mean(row.scores[task.name]) for task in tasks] for row in rows]
    found: dict[str, Any] = {
        "score": "loss" if sign < 0 else "accuracy", "matrix": matrix, "mean": statistics.mean(matrix[-1]), "lost": lost,
        "same bits": alike,
    }  # fmt: skip
    if rows[-1].unnamed:
        found["unnamed"] = [row.unnamed for row in rows]
    return found
