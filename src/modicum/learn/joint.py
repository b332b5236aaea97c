"""Joint training on all tasks so far: what learning on is held against."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from typing_extensions import override

from modicum.learn.learner import Learner, Learning
from modicum.learn.tasks import Task
from modicum.train.rows import drawn, stacked


@dataclass(frozen=True, kw_only=True)
class Joint(Learner):
    """All weights are trained anew from the base on the rows of every task so far, ``steps`` for each. *Needs and cost:* the rows of all tasks."""

    named: ClassVar[bool] = True
    looks_back: ClassVar[bool] = True

    @override
    def learn(self, learning: Learning, task: Task) -> None:
        others = [self._losses(each, learning.seed + place) for place, each in enumerate(learning.tasks)]

        def penalty(module: nn.Module) -> torch.Tensor:
            return torch.stack([next(each)(module) for each in others]).sum()

        steps = self.steps * (1 + len(others))
        made = self.fitted(
            learning.copied(None), {"*": "full"}, learning, task, penalty=penalty if others else None, steps=steps
        )  # fmt: skip
        learning.give(task, made, 0 if learning.experts else None)

    def _losses(self, task: Task, seed: int) -> Iterator:
        """The mean loss of one batch of a task after the other, as functions of a module."""
        for places in drawn(len(task.train), min(self.batch, len(task.train)), seed):
            batch = stacked([task.train[place] for place in places])
            yield lambda module, batch=batch: task.loss(module, batch).mean()
