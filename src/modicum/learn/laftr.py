"""LAFTR: old tasks' outputs are held without their data, by what a network of gates says that they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.settings import param
from modicum.learn.gated import Gated, distance
from modicum.learn.learner import Learner, Learning
from modicum.learn.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Laftr(Learner):
    """One model learns on; per old task ``hold`` times the distance of its outputs from the old ones is added, on inputs and gates drawn anew.

    *Needs and cost:* one number per rectified unit and the mean and covariance of the inputs of each old task, none of its rows; ``draws`` forward
    passes per update and task. *Reduces to* fine-tuning at ``hold=0``.
    *Differs from the paper:* the distance is the mean over drawn gates and inputs, not carried through layers as moments.
    """

    paper: ClassVar[Paper | None] = Paper(
        title="Efficient Parametric Approximations of Neural Network Function Space Distance",
        arxiv="2302.03519",
        year=2023,
        authors="Nikita Dhawan and Sicong Huang and Juhan Bae and Roger Grosse",
    )

    hold: float = param(1.0, "weight of what is held", between=(0.0, 1e9))
    draws: int = param(32, "inputs that are drawn for each old task in an update", between=(1, 10_000))

    @override
    def learn(self, learning: Learning, task: Task) -> None:
        last = 0 if learning.experts else None
        working, held = learning.copied(last), [learning.kept[old.name] for old in learning.tasks]
        olds, turn = [learning.copied(last)] * len(held), [0]

        def penalty(module: nn.Module) -> torch.Tensor:
            turn[0] += 1
            found = []
            for place, (known, old) in enumerate(zip(held, olds)):
                drawn = known.drawn(self.draws, learning.seed + 1000 * turn[0] + place)
                with torch.no_grad():
                    wanted = known.answered(old, drawn)
                found.append(distance(known.answered(module, drawn), wanted))
            return self.hold * torch.stack(found).sum()

        learning.give(task, self.fitted(working, {"*": "full"}, learning, task, penalty=penalty if held and self.hold else None), last)
        learning.kept[task.name] = Gated.of(learning.copied(0), task)
