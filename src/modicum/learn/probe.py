"""A linear probe: a layer of classes for each task on a model that stays as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from modicum.core.errors import ModelError
from modicum.learn.learner import Learner, Learning, of_head
from modicum.learn.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Probe(Learner):
    """The last layer alone is trained, from the base's, one for each task. Raises ``ModelError`` for a language model, which has no such layer."""

    named: ClassVar[bool] = True
    apart: ClassVar[bool] = True

    @override
    def learn(self, learning: Learning, task: Task) -> None:
        if not (plan := of_head(learning.module, task)):
            raise ModelError("probe: the model must be a classifier, is a language model. Take clr.")
        learning.give(task, self.fitted(learning.module, plan, learning, task))
