"""MOS: an adapter for each task, merged with those before while it is trained, and found again by what it makes of an input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn import functional as F
from typing_extensions import override

from modicum.core.errors import ModelError
from modicum.core.method import Paper
from modicum.core.settings import param
from modicum.data.splits import Batch
from modicum.learn.learner import Learner, Learning, class_means, features, of_head
from modicum.learn.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Mos(Learner):
    """Adapters ``A ← (1 - mix) A + mix · mean(earlier)`` several times while a task is learnt; classes are told by the nearest mean of features.

    Where nobody names the task, an input is taken for the class of the nearest mean on the base, and then goes through the adapter of the class
    that it is taken for, until that no longer changes.

    *Needs and cost:* an adapter and a layer of classes per task, two means per class; a few forward passes for an input of no named task.
    *Differs from the paper:* the layer of classes stays as it was trained, and is not aligned by drawing features of old classes.
    """

    paper: ClassVar[Paper | None] = Paper(
        title="MOS: Model Surgery for Pre-Trained Model-Based Class-Incremental Learning",
        arxiv="2412.09441",
        year=2024,
        authors="Hai-Long Sun and Da-Wei Zhou and Hanbin Zhao and Le Gan and De-Chuan Zhan and Han-Jia Ye",
    )
    apart: ClassVar[bool] = True

    rank: int = param(8, "width of the adapters", between=(1, 65536))
    mix: float = param(0.1, "share of the mean of earlier adapters in a merge", between=(0.0, 1.0))
    merges: int = param(4, "merges while a task is learnt", between=(0, 1000))
    refined: int = param(4, "most passes in which an adapter is found", between=(1, 100))

    @override
    def learn(self, learning: Learning, task: Task) -> None:
        earlier = [{each.place: each.tensors for each in delta.asides} for delta in learning.experts]

        def merged(t: Any, step: int) -> None:
            if not (earlier and self.merges and step % max(1, self.steps // (self.merges + 1)) == 0 and step < self.steps):
                return
            for each in t.asides:
                for name, tensor in each.state.trained.items():
                    mean = torch.stack([one[each.place][name] for one in earlier]).mean(0)
                    tensor.data.lerp_(mean, self.mix)

        plan = {"*": f"bottleneck rank={self.rank}", **of_head(learning.module, task)}
        learning.give(task, self.fitted(learning.module, plan, learning, task, after=merged))
        if task.classes is not None:
            with learning.answering(learning.of[task.name]) as module:
                own = class_means(module, task)
            learning.kept[task.name] = own, class_means(learning.module, task)

    @override
    def answers(self, learning: Learning, batch: Batch) -> torch.Tensor | None:
        tasks = [task for task in learning.tasks if task.name in learning.kept]
        if len(tasks) < len(learning.tasks) or not tasks:
            return None
        means, before = (torch.cat([learning.kept[task.name][place] for task in tasks]) for place in (0, 1))
        classes = torch.cat([task.classes for task in tasks if task.classes is not None])
        owners = torch.cat([torch.full((len(learning.kept[task.name][0]),), learning.of[task.name]) for task in tasks])
        if len(torch.unique(classes)) < len(classes):
            raise ModelError("mos: tasks must have classes of their own to be told apart, have some in common. Name the task.")
        with torch.no_grad():
            best = (F.normalize(features(learning.module, batch), dim=1) @ before.T).argmax(1)
        adapter = owners[best]
        for _ in range(self.refined):
            for expert in torch.unique(adapter).tolist():
                mine = (adapter == expert).nonzero()[:, 0]
                with torch.no_grad(), learning.answering(expert) as module:
                    found = features(module, tuple(part[mine] for part in batch))  # type: ignore[misc]
                best[mine] = (F.normalize(found, dim=1) @ means.T).argmax(1)
            if torch.equal(owners[best], adapter):
                break
            adapter = owners[best]
        return classes[best]
