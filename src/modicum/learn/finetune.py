"""Fine-tuning one model on task after task: the baseline that forgets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from modicum.learn.learner import Learner, Learning
from modicum.learn.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Finetune(Learner):
    """All weights are trained on the new task alone, from where the last one left them. *Needs and cost:* nothing is kept."""

    named: ClassVar[bool] = True

    @override
    def learn(self, learning: Learning, task: Task) -> None:
        last = 0 if learning.experts else None
        learning.give(task, self.fitted(learning.copied(last), {"*": "full"}, learning, task), last)
