"""PAR: a task like an earlier one shares its expert, which is held to its old answers; another one gets an expert of its own, as small as will do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F
from typing_extensions import override

from modicum.core.errors import ModelError
from modicum.core.method import Paper
from modicum.core.settings import param
from modicum.delta import Delta
from modicum.learn.learner import Learner, Learning, class_means, features, of_head
from modicum.learn.tasks import Task
from modicum.train.rows import drawn, losses, stacked, together


@dataclass(frozen=True, kw_only=True)
class Par(Learner):
    """Relatedness is the mean distance (1 - cosine) of a new task's features to the nearest class mean of an expert's tasks, on the base.

    Below ``related`` the expert is trained on, and on the new task's rows its other tasks' answers are held (``hold`` times their divergence).
    Otherwise an expert is made: of the ranks 1, 2, 4 … ``largest`` the smallest whose loss after a short training, on rows that it did not see,
    is within ``slack`` of the best.

    *Needs and cost:* class means per task; a short training for each rank where an expert is made.
    *Differs from the paper:* an expert is a change of low rank beside a common base rather than a searched network of its own.
    """

    paper: ClassVar[Paper | None] = Paper(
        title="Task Difficulty Aware Parameter Allocation & Regularization for Lifelong Learning",
        arxiv="2304.05288",
        year=2023,
        authors="Wenjin Wang and Yunqing Hu and Qianglong Chen and Yin Zhang",
    )

    related: float = param(0.05, "distance below which a task shares an expert", between=(0.0, 2.0))
    hold: float = param(1.0, "weight of the divergence from old answers", between=(0.0, 1e6))
    largest: int = param(8, "largest rank that is tried", between=(1, 65536))
    tried: int = param(40, "updates of a trial", between=(1, 10**6))
    slack: float = param(0.05, "loss by which a smaller expert may be worse", between=(0.0, 1e6))

    @override
    def learn(self, learning: Learning, task: Task) -> None:
        if task.classes is None:
            raise ModelError("par: the model must be a classifier, whose features tell tasks apart, is a language model. Take clr.")
        near = self.distances(learning, task)
        means = class_means(learning.module, task)
        learning.kept.setdefault("means", {})[task.name] = means
        learning.kept.setdefault("distances", {})[task.name] = near
        best = min(near, key=near.__getitem__) if near else None
        if best is not None and near[best] <= self.related:
            self._shared(learning, task, best)
        else:
            learning.give(task, self._own(learning, task))

    def distances(self, learning: Learning, task: Task) -> dict[int, float]:
        """Of each expert the mean distance of the task's features to the nearest class mean of the expert's tasks."""
        with torch.no_grad():
            found = F.normalize(torch.cat([features(learning.module, batch) for batch in together(task.train)]), dim=1)
        near = dict[int, float]()
        for expert in range(len(learning.experts)):
            means = torch.cat([learning.kept["means"][name] for name, each in learning.of.items() if each == expert])
            near[expert] = float((1 - (found @ means.T).amax(1)).mean())
        return near

    def _own(self, learning: Learning, task: Task) -> Delta:
        rank = self._searched(learning, task)
        learning.kept.setdefault("ranks", {})[task.name] = rank
        return self.fitted(learning.module, self._plan(learning, task, rank), learning, task)

    def _plan(self, learning: Learning, task: Task, rank: int) -> dict[str, str]:
        return {"*.weight": f"lora rank={rank} alpha={rank}", **of_head(learning.module, task)}

    def _searched(self, learning: Learning, task: Task) -> int:
        """The smallest rank that does nearly as well as the best, on a fifth of the rows."""
        held = task.train[::5]
        some = Task(task.name, [row for place, row in enumerate(task.train) if place % 5] or task.train, held)
        lost: dict[int, float] = {}
        rank = 1
        while rank <= self.largest:
            delta = self.fitted(learning.module, self._plan(learning, task, rank), learning, some, steps=min(self.tried, self.steps))
            trial = Learning(learning.module, learning.seed, experts=[delta])
            with trial.answering(0) as module:
                lost[rank] = float(losses(module, held, task.loss).mean())
            rank *= 2
        return min(rank for rank, loss in lost.items() if loss <= min(lost.values()) + self.slack)

    def _shared(self, learning: Learning, task: Task, expert: int) -> None:
        others = [each for each in learning.tasks if learning.of[each.name] == expert]
        ranks = learning.kept["ranks"]
        ranks[task.name] = ranks[others[0].name]
        holding = self._holding(learning.copied(expert), others, task, learning.seed)
        plan = self._plan(learning, task, ranks[task.name])
        learning.give(task, self.fitted(learning.module, plan, learning, task, penalty=holding, begun=learning.experts[expert]), expert)

    def _holding(self, teacher: nn.Module, others: list[Task], task: Task, seed: int) -> Callable[[nn.Module], torch.Tensor]:
        batches = drawn(len(task.train), min(self.batch, len(task.train)), seed + 1)

        def penalty(module: nn.Module) -> torch.Tensor:
            batch = stacked([task.train[place] for place in next(batches)])
            found = []
            for other in others:
                with torch.no_grad():
                    wanted = other.logits(teacher, batch).log_softmax(-1)
                found.append(F.kl_div(other.logits(module, batch).log_softmax(-1), wanted, reduction="batchmean", log_target=True))
            return self.hold * torch.stack(found).sum()

        return penalty
